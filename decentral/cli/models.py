"""The flags of a model of transformers, and the settings that they stand for. Imports none of it: names alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from typer import Option

from decentral.config.settings import value_of
from decentral.errors import UsageError

HF_TASK: Final = "decentral.workers.hf:build"

_Text = str | None

Model = Annotated[
    _Text, Option(help="Train this model of transformers: a folder, or a name on the hub.", metavar="NAME_OR_DIR")
]
FromScratch = Annotated[
    bool, Option("--from-scratch", help="Take the model's configuration alone, with weights drawn at random.")
]
Tokenizer = Annotated[_Text, Option(help="Its tokenizer, if that is not the model's own.", metavar="NAME_OR_DIR")]
Lora = Annotated[_Text, Option(help="Train a low-rank adapter alone.", metavar="rank=16,alpha=32,target=q_proj,v_proj")]
Dataset = Annotated[
    _Text, Option(help="Data sets by name on the hub, or folders; with --model.", metavar="NAME_OR_DIR,...")
]
TextField = Annotated[_Text, Option(help="Field of a row that has its text; with --model.", metavar="NAME")]
AllowDownload = Annotated[
    bool, Option("--allow-download", help="Download what the swarm names and this machine does not have.")
]


@dataclass(frozen=True, slots=True)
class ModelFlags:
    """As they were given; ``None`` and ``False`` where they were not."""

    model: str | None = None
    tokenizer: str | None = None
    lora: str | None = None
    dataset: str | None = None
    text_field: str | None = None
    from_scratch: bool = False
    allow_download: bool = False
    task: str | None = None

    def by_key(self, founding: bool) -> dict[str, Any]:
        """The settings: of the run's task for its founder, else of this machine alone.

        A folder is known by its whole path from then on.

        Raises:
            UsageError: a flag is empty or not understood.
        """
        if "" in (self.model, self.tokenizer):
            raise UsageError("--model or --tokenizer is empty.", hint="Is the variable set?")
        model, tokenizer = _whole(self.model), _whole(self.tokenizer)
        task: dict[str, Any] = {
            "data.dataset": self.dataset,
            "data.text_field": self.text_field,
            "model.from_scratch": self.from_scratch or None,
            **(lora_flags(self.lora) if self.lora is not None else {}),
        }
        own: dict[str, Any] = {"worker.allow_download": self.allow_download or None}
        if not founding:
            own |= {"worker.model": model, "worker.tokenizer": tokenizer}
        elif model is not None:
            # What an earlier configuration says of another model is read anew.
            read = ("model.config", "model.digest", "tokenizer.digest", "lora.base_digest")
            task |= {"model.name": model, **dict.fromkeys(read, "")}
            own |= {"task.factory": HF_TASK}
        if founding:
            task |= {"tokenizer.name": tokenizer}
        if self.task is not None:
            own |= {"task.factory" if founding else "worker.task": self.task}
        return own | {f"task.settings.{key}": value for key, value in task.items()}


def lora_flags(text: str) -> dict[str, Any]:
    """The settings of an adapter from ``rank=16,alpha=32,target=q_proj,v_proj``, by key.

    Raises:
        UsageError: there is something else in it, or no rank.
    """
    values: dict[str, str] = {}
    key = ""
    for part in text.split(","):  # what has no name belongs to the target before it
        name, equals, value = part.partition("=")
        key = name.strip() if equals else key
        values[key] = value.strip() if equals else f"{values.get(key, '')},{part.strip()}"
    if "rank" not in values or not values.keys() <= {"rank", "alpha", "dropout", "target"}:
        raise UsageError(
            f"--lora {text!r} is not understood.", hint="Write it as rank=16,alpha=32,target=q_proj,v_proj."
        )
    return {f"lora.{name}": value if name == "target" else value_of(value) for name, value in values.items()}


def _whole(name: str | None) -> str | None:
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name
