"""lm-eval as an outside judge: its `local-completions` over HTTP, against transformers' own score of the same answers.

    uv venv --python 3.11 ENV && uv pip install --python ENV/bin/python -r benchmarks/lm_eval_requirements.txt
    python -m benchmarks.openlora_lm_eval FOLDER --lm-eval ENV/bin/lm_eval

A task of 32 questions with four choices each, of words that the tokenizer knows, is asked of one adapter through the
gateway on Ray Serve. lm-eval writes the log-likelihood of each choice and whether it is what greedy decoding gives;
PEFT's model in this process gives its own. The command fails where they differ. Weights are random: the accuracy says
nothing, the agreement does.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import openlora_world as world
from benchmarks.openlora_serve import IN_FLIGHT, deployed
from openledger.adapters.base_model import load_tokenizer_from

NUM_QUESTIONS, NUM_CHOICES, ADAPTER = 32, 4, 1
TOLERANCE = 1e-3  # of a choice's log-likelihood, in nats
WORDS = (
    "the", "data", "model", "row", "share", "fee", "answer", "owner", "adapter", "ledger", "pays", "made", "what", "is",
)  # fmt: skip
TASK = """task: openledger_agreement
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
"""


def main() -> int:
    arguments = parse_arguments()
    made = world.make_world(arguments.folder / "world", IN_FLIGHT)
    task = write_task(arguments.folder / "lm_eval")
    with deployed(arguments.folder, made) as url:
        ask(arguments.lm_eval, url, made, task)
    (samples,) = (task / "out").rglob("samples_*.jsonl")
    judged = [pair for line in samples.read_text().splitlines() for pair in told(json.loads(line))]
    return report(judged, made)


def write_task(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "out").rglob("*.json*"):
        old.unlink()
    draw = random.Random(world.SEED)
    with (folder / "questions.jsonl").open("w") as stream:
        for _ in range(NUM_QUESTIONS):
            choices = [" " + " ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(NUM_CHOICES)]
            question = " ".join(draw.choices(WORDS, k=draw.randint(3, 20)))
            stream.write(json.dumps({"question": question, "choices": choices, "label": 0}) + "\n")
    (folder / "task.yaml").write_text(TASK % (folder / "questions.jsonl").resolve())
    return folder


def ask(lm_eval: str, url: str, made: world.World, task: Path) -> None:
    model = {
        "model": f"m{ADAPTER}", "base_url": f"{url}/v1/completions", "tokenizer": made.base.path,
        "tokenizer_backend": "huggingface", "num_concurrent": 4, "max_length": 1024,
    }  # fmt: skip
    command = [
        lm_eval, "--model", "local-completions", "--tasks", "openledger_agreement", "--include_path", str(task),
        "--model_args", ",".join(f"{name}={value}" for name, value in model.items()), "--log_samples",
        "--output_path", str(task / "out"),
    ]  # fmt: skip
    environment = {"OPENAI_API_KEY": os.environ["BENCH_KEY"], "HF_HOME": str((task / "cache").resolve())}
    subprocess.run(command, check=True, env={**os.environ, **environment})


def told(sample: dict[str, Any]) -> Iterator[tuple[str, str, float, bool]]:
    """Context, choice, its log-likelihood, whether it is greedy: as lm-eval wrote them."""
    for asked, (answer,) in zip(sample["arguments"].values(), sample["resps"], strict=True):
        loglikelihood, greedy = answer
        yield asked["arg_0"], asked["arg_1"], float(loglikelihood), str(greedy) == "True"


def report(judged: list[tuple[str, str, float, bool]], made: world.World) -> int:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer_from(Path(made.base.path))
    plain = AutoModelForCausalLM.from_pretrained(made.base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, made.folders[ADAPTER]).eval()
    worst, marks = 0.0, 0
    for context, choice, loglikelihood, greedy in judged:
        begin, ids = len(tokenizer(context)["input_ids"]), tokenizer(context + choice)["input_ids"]
        with torch.inference_mode():
            scores_TV = torch.log_softmax(model(torch.tensor([ids])).logits[0, begin - 1 : -1].float(), -1)
        chosen_T = torch.tensor(ids[begin:])
        own = float(scores_TV.gather(-1, chosen_T[:, None]).sum())
        worst = max(worst, abs(own - loglikelihood))
        marks += greedy != bool((scores_TV.argmax(-1) == chosen_T).all())
    print(f"{len(judged)} choices: largest difference {worst:.2g} nats, {marks} greedy marks differ")
    return int(len(judged) != NUM_QUESTIONS * NUM_CHOICES or worst > TOLERANCE or marks > 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="keeps models and adapters, about 350 MB")
    parser.add_argument("--lm-eval", required=True, help="the program, in an environment of its own")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
