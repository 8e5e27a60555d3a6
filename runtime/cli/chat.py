"""``visionllm-edge chat``: a conversation in the terminal, or with questions from a pipe."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli.model_options import generation_options, load_options
from visionllm_edge.runtime.cli.output import EventPrinter, save_picture
from visionllm_edge.runtime.cli.run_tasks.regions import POINTERS, read_region
from visionllm_edge.runtime.errors import EdgeError, InputError
from visionllm_edge.runtime.events import Event
from visionllm_edge.runtime.language_model import LanguageModel
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.manifest import LLAMA
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.pipelines.chat import ChatSession
from visionllm_edge.runtime.pipelines.loading import LoadOptions
from visionllm_edge.runtime.pipelines.text import TextChat
from visionllm_edge.runtime.regions import Region
from visionllm_edge.runtime.results import ChatResult

__all__ = ["chat", "load_model"]

_HELP = """\
/image FILE  talk about another picture, from the start
/box X1,Y1,X2,Y2, /point X,Y, /polygon X,Y,X,Y,..., /scribble X,Y,X,Y,..., /mask FILE
             point at a region; the next question names it: What is in region1?
/save FILE   write the picture that the last answer made, or the one with what it found
/reset       forget the conversation, keep the picture
/quit        end"""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", help="The picture to talk about.")
@click.option(
    "--threshold",
    type=click.FloatRange(0.0, 1.0),
    default=0.3,
    show_default=True,
    help="Smallest score of a detection.",
)
@click.option("--masks/--no-masks", default=True, help="Masks for what an answer finds.")
@generation_options
@load_options
@click.option("--verify/--no-verify", default=True, help="Hash the bundle's files first.")
def chat(
    bundle: Path,
    image: str | None,
    threshold: float,
    masks: bool,
    config: GenerationConfig,
    loading: LoadOptions,
    verify: bool,
) -> None:
    """Talk with a bundle, about a picture where it can see one."""
    model = load_model(bundle, loading, verify=verify)
    talk = Conversation(model, config, threshold=threshold, masks=masks)
    if image is not None:
        talk.look_at(image)
    interactive = sys.stdin.isatty()
    if interactive:
        click.echo(_HELP, err=True)
    failed = False
    for line in _lines(interactive):
        try:
            if not talk.handle(line):
                break
        except EdgeError as error:
            failed = True
            click.echo(f"Error: {error}", err=True)
    # Someone at the terminal has seen the message; a script has only the exit code.
    if failed and not interactive:
        raise click.exceptions.Exit(1)


def load_model(path: Path, options: LoadOptions, *, verify: bool) -> VisionLLM | LanguageModel:
    """The model of a bundle, whichever kind it is."""
    bundle = Bundle.open(path, verify=verify)
    if bundle.manifest.family == LLAMA:
        return LanguageModel.from_bundle(bundle, options)
    return VisionLLM.from_bundle(bundle, options)


class Conversation:
    """The state between two lines: the picture and what was said about it."""

    def __init__(
        self,
        model: VisionLLM | LanguageModel,
        config: GenerationConfig,
        *,
        threshold: float,
        masks: bool,
    ) -> None:
        """Start without a picture."""
        self._model = model
        self._config = config
        self._threshold = threshold
        self._masks = masks
        self._image: str | None = None
        self._regions: list[Region] = []
        self._session = self._start(None)

    def look_at(self, image: str) -> None:
        """Begin again with a picture.

        Raises:
            InputError: not a usable image, or a bundle that sees none; the conversation goes on
                as it was.
        """
        self._session = self._start(image)
        self._image = image
        self._regions.clear()

    def handle(self, line: str) -> bool:
        """Answer a question or obey a command; False at the end.

        Raises:
            EdgeError: the question or command could not be carried out; nothing is lost.
        """
        line = line.strip()
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        if not line:
            return True
        if command == "/quit":
            return False
        if command == "/reset":
            self._session.reset()
            self._regions.clear()
        elif command == "/image":
            if not argument:
                raise InputError("/image: expected a file name, got none. Write /image FILE.")
            self.look_at(argument)
        elif command[1:] in POINTERS and command[0] == "/":
            self._point(command[1:], argument)
        elif command == "/save":
            self._save(argument)
        elif command == "/help":
            click.echo(_HELP, err=True)
        elif command.startswith("/"):
            known = ", ".join(f"/{name}" for name in ("image", *POINTERS, "save", "reset", "quit"))
            raise InputError(f"{command}: expected {known} or a question.")
        else:
            self._answer(line)
        return True

    def _point(self, kind: str, argument: str) -> None:
        if not isinstance(self._session, ChatSession) or self._image is None:
            raise InputError(f"/{kind}: expected a picture to point at, got none. Use /image FILE.")
        region = read_region(kind, argument)
        self._session.mark([region])
        self._regions.append(region)
        number = self._session.next_region + len(self._regions) - 1
        click.echo(f"region{number} for the next question", err=True)

    def _answer(self, question: str) -> None:
        show = EventPrinter()
        try:
            for event in self._stream(question):
                show(event)
            self._regions.clear()
        except KeyboardInterrupt:
            show.end_line()
            click.echo("(stopped; this turn is forgotten)", err=True)
        except EdgeError:
            show.end_line()
            raise

    def _stream(self, question: str) -> Iterator[Event]:
        if isinstance(self._session, ChatSession):
            return self._session.stream(question, regions=self._regions)
        return self._session.stream(question)

    def _save(self, name: str) -> None:
        if not name:
            raise InputError("/save: expected a file name, got none. Write /save out.png.")
        answer = self._session.turns[-1][1] if self._session.turns else None
        if isinstance(answer, ChatResult) and answer.images:
            save_picture(answer.images[-1], None, Path(name))
        elif answer is None or self._image is None:
            raise InputError("/save: expected a picture and an answer about it. Ask first.")
        else:
            save_picture(answer, self._image, Path(name))

    def _start(self, image: str | None) -> ChatSession | TextChat:
        if isinstance(self._model, VisionLLM):
            return self._model.chat(
                image, config=self._config, threshold=self._threshold, masks=self._masks
            )
        if image is not None:
            raise InputError(
                "image: expected a bundle that sees pictures, got a language model alone. "
                "Leave the picture out."
            )
        return self._model.chat(config=self._config)


def _lines(interactive: bool) -> Iterator[str]:
    if not interactive:
        if isinstance(sys.stdin, io.TextIOWrapper):
            # A line that is not UTF-8 is then refused as a question and does not end the others.
            sys.stdin.reconfigure(errors="surrogateescape")
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return
