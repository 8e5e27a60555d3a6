"""Work ahead of its need: the block that owns it, and requests whose backbone runs beside the LLM.

Nothing here is timed. That two things run at once is shown by letting each wait for the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime import Box, GenerationConfig, VisionLLM
from visionllm_edge.runtime.errors import BackendError, ContextError
from visionllm_edge.runtime.pipelines.ahead import Ahead
from visionllm_edge.runtime.prompts import Control, Text, scripted_answer, scripted_grounding
from visionllm_edge.runtime.task_prompts import pose_answer

CLASSES = ["red circle", "person"]
NAMES = ["nose", "tail"]
LOW: dict[str, Any] = {"threshold": 0.0, "top_k": 8}
# Only a test that fails waits for so long.
PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def wait_for(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S), "the other side never came"


def overlapping(toy: Any) -> VisionLLM:
    toy.pipeline.overlap = True
    return VisionLLM(toy.pipeline)


def around(toy: Any, stage: str, before: Callable[[], object]) -> None:
    """Call something whenever a stage is run, on the thread that runs it."""
    runner = toy.stages.stages[stage]
    inner = runner.function

    def function(**inputs: Any) -> Any:
        before()
        return inner(**inputs)

    runner.function = function


def around_decoder(toy: Any, before: Callable[[], None]) -> None:
    inner = toy.decoder.run_with_cache

    def run(inputs: Any, cache: Any) -> Any:
        before()
        return inner(inputs, cache)

    toy.decoder.run_with_cache = run


def boom() -> None:
    raise BackendError("the backbone is gone. Look for it.")


# ---- the block


def test_the_work_runs_while_the_block_goes_on_and_join_waits_for_it() -> None:
    asked, done = threading.Event(), []

    def work() -> None:
        wait_for(asked)
        done.append(threading.get_ident())

    with Ahead(work) as ahead:
        ahead.start()
        ahead.start()  # once is enough
        assert not done
        asked.set()
        ahead.join()
        assert len(done) == 1 and done[0] != threading.get_ident()


def test_a_block_that_never_starts_does_nothing() -> None:
    with Ahead(boom) as ahead:
        ahead.join()
    with Ahead(None) as ahead:
        ahead.start()
        ahead.join()


def test_an_error_arrives_where_the_work_is_needed_and_only_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(BackendError, match="the backbone is gone"), Ahead(boom) as ahead:
        ahead.start()
        ahead.join()
    # By name: what ran before may have set the level of our own loggers.
    with caplog.at_level(logging.DEBUG, "visionllm_edge"), Ahead(boom) as ahead:
        ahead.start()
    assert "nobody needed failed: BackendError" in caplog.text


def test_the_blocks_own_error_wins_and_waits_for_the_work() -> None:
    failed, done = threading.Event(), []

    def work() -> None:
        wait_for(failed)
        done.append(True)
        boom()

    def request() -> None:
        with Ahead(work) as ahead:
            ahead.start()
            failed.set()
            raise KeyError("the request")

    with pytest.raises(KeyError, match="the request"):
        request()
    assert done == [True]


def test_without_a_thread_the_request_does_the_work(
    toy: Any, make_toy: Any, photo: Any, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    expected = VisionLLM(make_toy().pipeline).detect(photo, CLASSES, **LOW)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert overlapping(toy).detect(photo, CLASSES, **LOW) == expected
    assert "one after the other" in caplog.text


# ---- requests


def script(toy: Any) -> Any:
    toy.reply("pinpoint", pose_answer(CLASSES, NAMES))
    toy.reply("analyze", scripted_answer(CLASSES))
    toy.reply("locate", scripted_grounding())
    toy.reply("words only", (Text("Nothing to see."),))
    marked = (Control("<det>"), Text(" a person "), Control("</det>"), Control("[DET]"))
    toy.reply("objects", (Text("There is"), *marked, Text(".")))
    return toy


REQUESTS: dict[str, Callable[[VisionLLM, Any], Any]] = {
    "detect": lambda model, photo: model.detect(photo, CLASSES, **LOW),
    "segment": lambda model, photo: model.segment(photo, CLASSES, **LOW),
    "free": lambda model, photo: model.segment(photo, CLASSES, mode="free", **LOW),
    "listed": lambda model, photo: model.detect(photo, CLASSES, mode="listed", **LOW),
    "ground": lambda model, photo: model.ground(photo, ["a person", "a star"], masks=True),
    "ground free": lambda model, photo: model.ground(photo, "a person", mode="free"),
    "semantic": lambda model, photo: model.semantic(photo, CLASSES, threshold=0.0),
    "caption": lambda model, photo: model.grounded_caption(photo, "the objects?", **LOW),
    "pose": lambda model, photo: model.pose(photo, CLASSES, NAMES, benchmark=True),
    "pose free": lambda model, photo: model.pose(
        photo, CLASSES, NAMES, mode="free", benchmark=True
    ),
}


def same(ours: Any, theirs: Any) -> bool:
    """Equal to the last bit; arrays have no truth value of their own."""
    if isinstance(ours, np.ndarray):
        return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    if isinstance(ours, (tuple, list)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if hasattr(ours, "__dataclass_fields__"):
        return type(ours) is type(theirs) and same(
            list(vars(ours).values()), list(vars(theirs).values())
        )
    return bool(ours == theirs)


@pytest.mark.parametrize("request_name", REQUESTS)
def test_the_language_model_and_the_backbone_run_at_once_and_nothing_changes(
    make_full: Any, photo: Any, request_name: str
) -> None:
    ask = REQUESTS[request_name]
    expected = ask(VisionLLM(script(make_full()).pipeline), photo)
    toy = script(make_full())
    looking, reading = threading.Event(), threading.Event()
    threads: dict[str, int] = {}

    def backbone() -> None:
        threads["backbone"] = threading.get_ident()
        looking.set()
        wait_for(reading)

    def decoder() -> None:
        threads["decoder"] = threading.get_ident()
        wait_for(looking)
        reading.set()

    stage = "pose_backbone" if "pose" in request_name else "det_backbone"
    around(toy, stage, backbone)
    around_decoder(toy, decoder)
    got = ask(overlapping(toy), photo)

    assert same(got, expected)
    assert threads["decoder"] == threading.get_ident() != threads["backbone"]
    assert toy.calls(stage) == 1
    found = [getattr(got, what, ()) for what in ("poses", "detections", "labels")]
    assert any(len(one) for one in found), "an empty answer compares nothing"


def test_regions_too(make_toy: Any, photo: Any) -> None:
    box = [Box(2, 2, 30, 30)]
    expected = VisionLLM(make_toy(regions=True).pipeline).segment(photo, regions=box)
    toy = make_toy(regions=True)
    threads = []
    around(toy, "det_backbone", lambda: threads.append(threading.get_ident()))
    assert same(overlapping(toy).segment(photo, regions=box), expected)
    assert threads and threads[0] != threading.get_ident()


def test_without_the_option_all_is_one_thread(toy: Any, photo: Any) -> None:
    threads = []
    around(toy, "det_backbone", lambda: threads.append(threading.get_ident()))
    VisionLLM(toy.pipeline).detect(photo, CLASSES)
    assert threads == [threading.get_ident()]


def test_a_picture_that_is_known_starts_nothing(
    toy: Any, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = overlapping(toy)
    model.detect(photo, CLASSES)

    def refuse(thread: threading.Thread) -> None:
        raise AssertionError("no thread is needed")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    model.detect(photo, ["something else"])
    assert toy.calls("det_backbone") == 1


def test_words_start_nothing(full: Any, photo: Any) -> None:
    model = overlapping(script(full))
    assert model.vqa(photo, "words only").text == "Nothing to see."
    assert model.chat(photo).send("words only").text == "Nothing to see."
    model.caption(photo, config=GenerationConfig(max_new_tokens=2))
    assert full.calls("det_backbone") == full.calls("pose_backbone") == 0


def test_a_prompt_that_does_not_fit_starts_nothing(make_toy: Any, photo: Any) -> None:
    toy = make_toy(capacity=40)
    with pytest.raises(ContextError):
        overlapping(toy).detect(photo, CLASSES)
    assert toy.calls("det_backbone") == toy.calls("vision_encoder") == 0


def test_a_backbone_that_fails_fails_the_request_and_the_next_one_works(
    toy: Any, make_toy: Any, photo: Any
) -> None:
    expected = VisionLLM(make_toy().pipeline).detect(photo, CLASSES, **LOW)
    model = overlapping(toy)
    good = toy.stages.stages["det_backbone"].function
    around(toy, "det_backbone", boom)
    with pytest.raises(BackendError, match="the backbone is gone"):
        model.detect(photo, CLASSES, **LOW)
    assert toy.calls("det_encoder") == 0
    toy.stages.stages["det_backbone"].function = good
    assert model.detect(photo, CLASSES, **LOW) == expected


def test_a_language_model_that_fails_waits_for_the_backbone(toy: Any, photo: Any) -> None:
    failed = threading.Event()
    around(toy, "det_backbone", lambda: wait_for(failed))
    around_decoder(toy, failed.set)
    toy.decoder.fail = True
    model = overlapping(toy)
    with pytest.raises(RuntimeError, match="the device is gone"):
        model.detect(photo, CLASSES)
    assert toy.calls("det_backbone") == 1 and toy.calls("det_encoder") == 0
    toy.decoder.fail = False
    model.detect(photo, CLASSES)
    assert toy.calls("det_backbone") == 1  # what the failed request saw is not lost


def test_an_answer_that_names_nothing_needs_no_backbone(toy: Any, photo: Any) -> None:
    toy.reply("analyze", (Text("There is nothing."),))
    around(toy, "det_backbone", boom)
    result = overlapping(toy).detect(photo, CLASSES, mode="free")
    assert result.detections == () and result.text == "There is nothing."


def test_a_listener_that_raises_ends_the_request(toy: Any, photo: Any) -> None:
    late = threading.Event()
    around(toy, "det_backbone", lambda: wait_for(late))
    # The backbone is still at it when the listener leaves, and the request waits for it.
    timer = threading.Timer(0.1, late.set)

    def listen(event: object) -> None:
        timer.start()
        raise LookupError("the listener left")

    kept = None
    try:
        overlapping(toy).detect(photo, CLASSES, stream=listen)
    except LookupError as error:
        kept = error  # with its traceback, and so with everything that the request held
    assert kept is not None and late.is_set() and toy.calls("det_backbone") == 1
    assert not [t for t in threading.enumerate() if t.name == "visionllm-edge ahead"]
    timer.join()


# ---- several threads


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Each call on its own thread; their results in order."""
    results: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_models_on_two_threads(make_toy: Any, photo: Any) -> None:
    pictures = (photo, 255 - photo)
    expected = [VisionLLM(make_toy().pipeline).segment(p, CLASSES, **LOW) for p in pictures]
    toys = [make_toy() for _ in pictures]
    together = threading.Barrier(len(toys), timeout=PATIENCE_S)
    for toy in toys:
        around(toy, "det_backbone", together.wait)
    models = [overlapping(toy) for toy in toys]
    pairs = zip(models, pictures, strict=True)
    got = at_once(*(partial(model.segment, picture, CLASSES, **LOW) for model, picture in pairs))
    assert same(got, expected)


def test_a_model_that_goes_from_thread_to_thread(toy: Any, make_toy: Any, photo: Any) -> None:
    model = overlapping(toy)
    for picture in (photo, 255 - photo):
        expected = VisionLLM(make_toy().pipeline).detect(picture, CLASSES, **LOW)
        (got,) = at_once(partial(model.detect, picture, CLASSES, **LOW))
        # Another question stands before it in the cache, so the last bits may differ.
        assert [d.label for d in got.detections] == [d.label for d in expected.detections]


def test_a_backbone_is_never_run_twice_at_a_time(toy: Any, photo: Any) -> None:
    """A stage is for one thread at a time, and a picture is looked at once."""
    backbone = toy.pipeline.detector.backbone
    running, most = [0], [0]

    def enter() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)  # room for the others to come in, if nothing keeps them out

    around(toy, "det_backbone", enter)
    inner = toy.stages.stages["det_backbone"].function

    def leave(**inputs: Any) -> Any:
        try:
            return inner(**inputs)
        finally:
            running[0] -= 1

    toy.stages.stages["det_backbone"].function = leave
    one, other = toy.pipeline.open(photo), toy.pipeline.open(255 - photo)
    got = at_once(*(partial(backbone.look_at, p) for p in (one, other, one, other)))
    assert most == [1] and toy.calls("det_backbone") == 2
    assert got[0] is got[2] and got[1] is got[3] and got[0] is not got[1]
