"""Other runtimes for language models, measured beside ours (``llm.py``).

One file per runtime. Its upper half runs here and says which processes to start; its lower half is
the process, which may run in an environment of its own where nothing of ours is installed: such a
file imports the standard library and, in a function, its own runtime. A new runtime is a new file
and an entry in ``llm.py``'s list.
"""
