"""Write the tests' documents and lm-eval tasks into a folder: `make_tasks.py FOLDER [DOCUMENTS]`."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

NAMES = [
    "Anna",
    "Bruno",
    "Clara",
    "David",
    "Elena",
    "Felix",
    "Greta",
    "Hugo",
    "Irene",
    "Jonas",
    "Karin",
    "Lukas",
    "Maria",
]
FACTS = {
    "colours": ("colour", ["red", "green", "blue", "yellow", "purple", "orange", "brown", "black", "white", "grey"]),
    "towns": ("town", ["Lyon", "Turin", "Porto", "Ghent", "Basel", "Malmo", "Graz", "Cork", "Leeds", "Tartu"]),
}


def documents(name: str, count: int) -> list[dict[str, str]]:
    """`count` documents of 4 to 16 sentences, one of which the cue asks for."""
    noun, values = FACTS[name]
    draw = random.Random(name)
    rows = []
    for index in range(count):
        people = draw.sample(NAMES, draw.randint(4, len(NAMES)))
        told = {person: draw.choice(values) for person in people}
        asked = draw.choice(people)
        passage = " ".join(f"The {noun} of {person} is {value}." for person, value in told.items())
        cue = f"The {noun} of {asked} is"
        rows.append(
            {"doc_id": f"{name}-{index}", "passage": passage, "question": cue, "cue": cue, "value": told[asked]}
        )
    return rows


def make(folder: Path, count: int = 40) -> Path:
    """The tasks jrt_colours, jrt_towns, their _twice, the group facts and the multiple-choice task colours_choice."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    shutil.copy(here / "scoring.py", folder)
    shutil.copy(here / "_facts_yaml", folder)
    tasks = []
    for name in FACTS:
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in documents(name, count)), encoding="utf-8")
        for variant, text in (
            ("", "{{passage}} {{cue}}"),
            ("_twice", "{{question}}? {{passage}}\\n{{passage}} {{cue}}"),
        ):
            tasks.append(f"jrt_{name}{variant}")
            (folder / f"{tasks[-1]}.yaml").write_text(
                f'include: _facts_yaml\ntask: {tasks[-1]}\ndataset_kwargs: {{data_files: {{test: "{data}"}}}}\n'
                f'doc_to_text: "{text}"\nmetadata: {{version: 1.0, context_length: 1000, answer_length: 50}}\n',
                encoding="utf-8",
            )
    choices = ", ".join(FACTS["colours"][1])
    data = folder / "colours.jsonl"
    (folder / "colours_choice.yaml").write_text(
        "task: colours_choice\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f'dataset_kwargs: {{data_files: {{test: "{data}"}}}}\ndoc_to_text: "{{{{passage}}}} {{{{cue}}}}"\n'
        f"doc_to_choice: [{choices}]\ndoc_to_target: value\nmetric_list: [{{metric: acc}}, {{metric: acc_norm}}]\n"
        "metadata: {version: 1.0}\n",
        encoding="utf-8",
    )
    (folder / "facts.yaml").write_text(
        f"group: facts\ntask: [{', '.join(tasks)}]\n"
        "aggregate_metric_list: [{metric: contains, weight_by_size: true}]\nmetadata: {version: 1.0}\n",
        encoding="utf-8",
    )
    return folder


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 40)
