"""``mango layers``: where experts would be cut, from how alike their states are to the trunk's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def layers(
    params: Annotated[Path, typer.Option(help="Parameter file.")] = Path("params.yaml"),
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a page with the matrices; its name ends in .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Propose where experts are cut, from how alike models think.

    It is what `fusion.layers: auto` takes, and needs the blocks that extract-blocks makes.
    """
    from mango import console
    from mango.checkpoints import open_tokenizer, write_file
    from mango.cli.devices import device_of, without_bars
    from mango.config import Settings
    from mango.errors import ConfigError
    from mango.evaluation.report_layers import layers_section, words
    from mango.evaluation.schema import Alignment
    from mango.pages import page
    from mango.security import enforced
    from mango.training import Job, calibration_text, propose_layers
    from stages.params import load_params
    from stages.store import open_store

    if out is not None and out.suffix != ".html":
        raise ConfigError(f"--out {out}: the page is written to a file that ends in .html")
    without_bars()
    loaded = load_params(params, overrides=assignments or ())
    job = Job(loaded.seed, loaded.corpus, loaded.fusion, loaded.router, loaded.adapter, loaded.train)
    job.check_task("auto")
    with enforced(loaded.security):
        store = open_store(loaded)
        tokenizer = open_tokenizer(store.tokenizer_folder(loaded.fusion.trunk))
        proposal = propose_layers(
            store,
            loaded.fusion,
            loaded.adapter,
            calibration_text(job, tokenizer),
            ridge=loaded.train.start.ridge,
            batch_size=loaded.train.batch_size,
            device=device_of(Settings.from_environ().device),
        )
    found = [Alignment.model_validate(one.to_dict()) for one in proposal.alignments]
    if out is not None:
        css = Path(__file__).parent.parent.joinpath("mango/evaluation/report.css").read_text(encoding="utf-8")
        write_file(
            out, page("Where experts are cut", ["<h1>Where experts are cut</h1>", layers_section(found)], css=css)
        )
    spans = [expert.model_dump(mode="json") for expert in proposal.fusion.experts]
    if as_json:
        console.result_json({"experts": spans, "alignments": [one.to_dict() for one in proposal.alignments]})
        return
    for one in found:
        console.result(f"{one.expert}: {words(one)}")
    console.result("\nfusion:\n  experts:")
    for expert in proposal.fusion.experts:
        shown = ", ".join(
            f"{{enter: {s.enter}, exit: {s.exit}, blocks: [{s.blocks[0]}, {s.blocks[1]}]}}"
            for s in expert.cut
            if not isinstance(s, str)
        )
        cut = expert.cut if isinstance(expert.cut, str) else f"[{shown}]"
        console.result(f"    - {{model: {expert.model}, edges: {expert.edges}, cut: {cut}}}")
