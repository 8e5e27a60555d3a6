"""The process that builds one engine: ``python -m visionllm_edge.runtime.engines.child IN OUT``.

It reads a `BuildRequest`, writes the engine and a `BuildAnswer`, and prints one JSON object per
line for progress. TensorRT is loaded here and never in the process that started this one: the
parser of one release aborts instead of raising, and a builder may run out of memory.

Strongly typed networks only: every precision and every cast stands in the graph.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visionllm_edge.runtime.engines.external_data import check_external_data
from visionllm_edge.runtime.engines.parser_log import ParserLog, disagreements
from visionllm_edge.runtime.engines.plugin_loading import load_plugins
from visionllm_edge.runtime.engines.request import (
    BuildAnswer,
    BuildRequest,
    read_json,
    write_json,
)
from visionllm_edge.runtime.engines.tensorrt_module import TensorRT, load
from visionllm_edge.runtime.errors import BackendError, EdgeError, PluginError

__all__ = ["build_engine", "main"]

_KEPT = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO")
_ERRORS = ("INTERNAL_ERROR", "ERROR")
_MESSAGES_SHOWN = 4


def main(arguments: list[str]) -> int:
    """Build; every error of ours becomes an answer, anything else the process' own death."""
    request = read_json(BuildRequest, Path(arguments[0]))
    try:
        answer = build_engine(request, _print_event)
    except EdgeError as error:
        answer = BuildAnswer(error=str(error), kind=type(error).__name__)
    write_json(Path(arguments[1]), answer)
    return 0


def build_engine(request: BuildRequest, report: Callable[[str, int, int], None]) -> BuildAnswer:
    """Parse, check which way each node went, build, store.

    Args:
        request: what to build.
        report: gets phase, steps done and steps in all.

    Raises:
        BackendError: the graph cannot be parsed or built, with TensorRT's own words.
        BundleError: the graph's weights are not plain files of the kit.
        PluginError: a node did not get the form that lowering decided.
    """
    plan = request.plan
    graph = Path(request.root) / plan.graph
    check_external_data(graph, Path(request.root))
    trt = load(request.backend)
    with Path(request.log).open("a", encoding="utf-8") as stream:
        log = _make_logger(trt, lambda line: print(line, file=stream, flush=True), request.verbose)
        # Creators and libraries must live for as long as the network does.
        keep = load_plugins(trt, request)
        builder = trt.module.Builder(log)
        strongly_typed = trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(strongly_typed))
        report("parse", 0, 1)
        started = time.monotonic()
        parser = trt.module.OnnxParser(network, log)
        parsed = parser.parse_from_file(str(graph))
        parse_s = time.monotonic() - started
        if not parsed:
            raise _parse_error(trt, request, parser, log.decisions)
        wrong = disagreements(plan.forms, log.decisions.decisions)
        if wrong:
            raise _form_error(trt, request, wrong)
        config = _configure(trt, request, builder, network, report)
        started = time.monotonic()
        engine = builder.build_serialized_network(network, config)
        build_s = time.monotonic() - started
        if engine is None:
            raise BackendError(
                f"stage '{plan.name}': {trt.product} could not build it: {log.last_errors()} "
                f"The whole log: {Path(request.log).name}."
            )
        content = memoryview(engine)
        Path(request.engine).write_bytes(content)
        _store_timing_cache(request, config)
        ways = [decision.way for decision in log.decisions.decisions]
        answer = BuildAnswer(
            version=trt.version,
            engine_bytes=len(content),
            parse_s=round(parse_s, 3),
            build_s=round(build_s, 3),
            peak_rss_bytes=_peak_rss_bytes(),
            layers=network.num_layers,
            plugins=ways.count("plugin"),
            functions=ways.count("function"),
        )
        del keep
        return answer


def _configure(
    trt: TensorRT,
    request: BuildRequest,
    builder: Any,
    network: Any,
    report: Callable[[str, int, int], None],
) -> Any:
    module, plan = trt.module, request.plan
    config = builder.create_builder_config()
    # On by default, and it would round what the graph keeps in fp32 (locations, norms) to 10 bits.
    config.clear_flag(module.BuilderFlag.TF32)
    for name in plan.flags:
        if not hasattr(module.BuilderFlag, name):
            raise BackendError(
                f"stage '{plan.name}': {trt.product} has no builder flag {name}. Leave it out."
            )
        config.set_flag(getattr(module.BuilderFlag, name))
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if trt.capabilities["compute_capabilities"] and request.sm:
        _ask_for_sm(trt, request, config)
    for profile in plan.profiles:
        made = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            wanted = profile.shapes.get(tensor.name)
            if wanted is not None:
                made.set_shape(tensor.name, wanted.min, wanted.opt, wanted.max)
            elif -1 in tuple(tensor.shape):
                raise BackendError(
                    f"stage '{plan.name}': input '{tensor.name}' {tuple(tensor.shape)} is dynamic, "
                    f"profile '{profile.use}' has no range for it. Make the kit again."
                )
        if config.add_optimization_profile(made) < 0:
            raise BackendError(
                f"stage '{plan.name}': {trt.product} refuses the profile '{profile.use}'. Make "
                "the kit again."
            )
    if _times_tactics(request):
        path = Path(request.timing_cache or "")
        content = path.read_bytes() if path.is_file() else b""
        # A cache of another device or release is refused by TensorRT itself, and starts empty then.
        if not config.set_timing_cache(config.create_timing_cache(content), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    if trt.capabilities["progress_monitor"]:
        config.progress_monitor = _make_monitor(trt, report)
    return config


def _ask_for_sm(trt: TensorRT, request: BuildRequest, config: Any) -> None:
    known = trt.module.ComputeCapability
    missing = [sm for sm in request.sm if not hasattr(known, f"SM{sm}")]
    if missing:
        raise BackendError(
            f"stage '{request.plan.name}': {trt.product} builds for "
            f"{', '.join(name for name in known.__members__ if name.startswith('SM'))}, "
            f"the target asks for SM{missing[0]}. Choose a target of this backend."
        )
    config.num_compute_capabilities = len(request.sm)
    for index, sm in enumerate(request.sm):
        config.set_compute_capability(getattr(known, f"SM{sm}"), index)


def _times_tactics(request: BuildRequest) -> bool:
    """TensorRT-RTX picks kernels when an engine is loaded: its timing cache does nothing."""
    return request.timing_cache is not None and request.backend != "tensorrt_rtx"


def _store_timing_cache(request: BuildRequest, config: Any) -> None:
    if not _times_tactics(request):
        return
    cache = config.get_timing_cache()
    if cache is None:
        return
    path = Path(request.timing_cache or "")
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(memoryview(cache.serialize()))
    partial.replace(path)


def _parse_error(trt: TensorRT, request: BuildRequest, parser: Any, log: ParserLog) -> EdgeError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    ops = request.plan.plugin_ops
    if log.plugin_missing and ops:
        return _form_error(
            trt, request, [f"the parser found no plugin for {', '.join(sorted(ops))}"]
        )
    texts = []
    for error in errors[:_MESSAGES_SHOWN]:
        name = error.node_name() if hasattr(error, "node_name") else ""
        op = error.node_operator() if hasattr(error, "node_operator") else ""
        texts.append(f"node '{name}' ({op}): {error.desc()}" if name or op else error.desc())
    return BackendError(
        f"stage '{request.plan.name}': {trt.product} cannot parse {request.plan.graph}: "
        f"{'; '.join(texts) or 'no reason given'}. The whole log: {Path(request.log).name}."
    )


def _form_error(trt: TensorRT, request: BuildRequest, wrong: list[str]) -> PluginError:
    hint = {
        "none": "No plugins were loaded: build with plugins, or make the kit with --no-plugins.",
        "python": "Its creator was registered: see the log for the parser's reason.",
        "library": "Check that the given library holds it (`visionllm-edge plugins build`).",
    }[request.plugins]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return PluginError(
        f"stage '{request.plan.name}': {trt.product}: {wrong[0]}{more}. Nothing was built. {hint}"
    )


def _make_logger(trt: TensorRT, write: Callable[[str], None], verbose: bool) -> Any:
    """A TensorRT logger that keeps errors, feeds the parser's decisions and writes lines."""

    class Logger(trt.module.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.decisions = ParserLog()
            self.errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            level = str(severity).rpartition(".")[2]
            known = len(self.decisions.decisions)
            told = self.decisions.feed(message)
            for decision in self.decisions.decisions[known:]:
                message += f" (node '{decision.node}')"
            if level in _ERRORS:
                self.errors.append(message)
            if level in _KEPT or told or verbose:
                write(f"[{level}] {message}")

        def last_errors(self) -> str:
            return " | ".join(self.errors[-_MESSAGES_SHOWN:]) or "no reason given."

    return Logger()


def _make_monitor(trt: TensorRT, report: Callable[[str, int, int], None]) -> Any:
    """A progress monitor that reports the two outer levels of phases."""

    class Monitor(trt.module.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self._phases: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None or (parent in self._phases and len(self._phases) < 2):
                self._phases[phase] = steps
                report(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self._phases:
                report(phase, step + 1, self._phases[phase])
            return True  # False would cancel the build

        def phase_finish(self, phase: str) -> None:
            self._phases.pop(phase, None)

    return Monitor()


class _EventPrinter:
    """Prints progress as JSON lines, a few per second: phases may have thousands of steps."""

    def __init__(self, every_s: float = 0.5) -> None:
        self._every_s = every_s
        self._last = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == 0 or now - self._last >= self._every_s:
            self._last = now
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps({"phase": phase, "done": done, "total": total}), flush=True)


_print_event = _EventPrinter()


def _peak_rss_bytes() -> int:
    """Largest resident size of this process.

    Linux hands `ru_maxrss` on from the process that started this one, so its own record is read.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
