"""The model card: what the weights beside it are, how to load them, what to expect of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffreward.record import Change

_LORA, _PIPELINE = "pytorch_lora_weights.safetensors", "model_index.json"
_PEFT = "adapter_model.safetensors"
_CODE = ("loader", "network", "usage", "task")
"""Settings that are for the code and the header, not for the table."""
_SCHEDULERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler"}


def write_model_card(
    folder: Path,
    algorithm: str,
    reward: str,
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, object],
) -> Path:
    """Write ``README.md`` beside weights, as users of diffusers expect it.

    Whether they are LoRA weights or a pipeline is seen from the files in the folder.

    Args:
        folder: of the weights, in the folder of the run.
        algorithm: what they were trained with.
        reward: what they were trained on.
        before: mean, error and n of each measure for the base model.
        after: the same for these weights.
        settings: of the samples that were measured: base_model, a hub id or a folder; sampler,
            "ddim" or "ddpm"; loader, the class of the pipeline if it is not diffusers' own;
            network, its component that was trained; usage, the line of Python that samples; task,
            as the hub names it; anything else is only listed.

    Returns:
        The card.
    """
    base = str(settings.get("base_model") or "")
    is_lora = any((folder / name).is_file() for name in (_LORA, _PEFT))
    parts = [
        _header(base, is_lora, reward, str(settings.get("task", "text-to-image"))),
        f"# {folder.resolve().parent.name}",
        _description(base, is_lora, algorithm, reward),
        *_usage(folder, base, settings),
        *_measures(before, after, settings),
    ]
    card, aside = folder / "README.md", folder / ".README.md.writing"
    aside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    os.replace(aside, card)
    return card


def _header(base: str, is_lora: bool, reward: str, task: str) -> str:
    """What the hub reads: YAML between dashes."""
    from huggingface_hub import ModelCardData

    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    rewards = re.findall(r"[A-Za-z_]\w*", reward)
    tags = [task, *["lora"] * is_lora, "diffreward", *rewards]
    data = ModelCardData(
        base_model=base if is_hub_id else None,
        library_name="diffusers",
        pipeline_tag=task,
        tags=[*dict.fromkeys(tags)],
    )
    return f"---\n{data.to_yaml()}\n---"


def _description(base: str, is_lora: bool, algorithm: str, reward: str) -> str:
    kind = "LoRA weights for" if is_lora else "A fine-tuned version of"
    return (
        f"{kind} {f'`{base}`' if base else 'a diffusion model'}, trained by diffreward with "
        f"{algorithm} on the reward {reward}. No licence is stated here: see that of the base "
        "model, from which these weights derive."
    )


def _usage(folder: Path, base: str, settings: Mapping[str, object]) -> list[str]:
    """Code to copy if diffusers can load what is there."""
    here, network = '"path/or/hub-id/of/this/folder"', settings.get("network")
    source, adapter = json.dumps(base), []
    if base and (folder / _LORA).is_file():
        adapter = [f"pipe.load_lora_weights({here})"]
    elif base and (folder / _PEFT).is_file():
        adapter = [f"pipe.{network} = PeftModel.from_pretrained(pipe.{network}, {here})"]
    elif (folder / _PIPELINE).is_file():
        source = here
    else:
        return []
    scheduler = _SCHEDULERS.get(str(settings.get("sampler")))
    library, loader = str(settings.get("loader", "diffusers.DiffusionPipeline")).split(".")
    lines = [
        f"from {library} import " + ", ".join(filter(None, [scheduler, loader])),
        *["from peft import PeftModel"] * (folder / _PEFT).is_file(),
        "",
        f"pipe = {loader}.from_pretrained({source})",
        *[f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config)"] * bool(scheduler),
        *adapter,
        str(settings["usage"]),
    ]
    return ["## Use", "\n".join(["```python", *lines, "```"])]


def _measures(
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, object],
) -> list[str]:
    rows = [[f"{c.name} ({c.role})", *c.cells] for c in Change.between(before, after)]
    return [
        "## Measures",
        _table(["measure", "before", "after", "change", "n"], rows),
        "Means over n samples ± one standard error; before is the base model, with the same "
        "prompts and seeds. Training maximised the trained reward; the other measures were held "
        "out. The samples were drawn with these settings:",
        _table(
            ["setting", "value"],
            [[name, str(value)] for name, value in settings.items() if name not in _CODE],
        ),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; whatever the cells hold stays in its cell."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
