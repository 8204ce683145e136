"""`capstan catalog`: the facts that Capstan ships, with their sources."""

from __future__ import annotations

from capstan.console import out, print_json, table
from specs.document import DType
from specs.errors import InputError, nearest_names

KINDS = ("models", "devices", "nodes", "engines")
ACTIVE = (
    "active: parameters that a token is multiplied with, without the experts that it does not visit and without the "
    "input embedding, a table look-up (tied, it is the head, and counts)"
)


def run_catalog(kind: str, name: str | None, json_output: bool) -> None:
    """List one kind, or show one entry with all its figures and sources. `InputError` for an unknown kind or name."""
    if kind not in KINDS:
        raise InputError(
            f"there is no catalogue of {kind!r}",
            expected=f"one of {', '.join(KINDS)}",
            nearest=nearest_names(kind, KINDS),
        )
    if name is not None:
        _one(kind, name, json_output)
    else:
        rows = _rows(kind)
        if json_output:
            print_json(rows)
        else:
            _print(kind, rows)


def _rows(kind: str) -> list[dict[str, object]]:
    from specs.catalog import device_names, engine_names, load_device, load_engine, load_node, load_profile, node_names

    if kind == "models":
        from specs.architecture import describe_models

        return [
            {
                "model": item.name,
                "family": item.family,
                "layers": item.layers,
                "parameters": f"{item.parameters / 1e9:.1f} B",
                "active": f"{item.active_parameters / 1e9:.1f} B",
                "context": item.max_position_embeddings,
                "weights": item.native_weights_dtype,
            }
            for item in describe_models()
        ]
    if kind == "devices":
        rows: list[dict[str, object]] = []
        for name in device_names():
            device, profile = load_device(name), load_profile(name)
            peak = max(device.flops.get(dtype, 0.0) for dtype in (DType.BF16, DType.FP16))
            rows.append(
                {
                    "device": name,
                    "memory": f"{device.memory_bytes / 2**30:.0f} GiB",
                    "bandwidth": f"{device.hbm_bytes_per_s / 1e12:.2f} TB/s",
                    "16-bit": f"{peak / 1e12:.0f} TFLOP/s",
                    "link": device.link,
                    "target": device.target,
                    "costs": profile.confidence
                    if profile.relative_of is None
                    else f"borrowed from {profile.relative_of}",
                }
            )
        return rows
    if kind == "nodes":
        return [
            {"node": name, "devices": f"{node.gpus} x {node.device}", "ports": node.network_ports}
            for name in node_names()
            for node in [load_node(name)]
        ]
    return [
        {
            "engine": name,
            "version": engine.version,
            "block": engine.block_size_tokens,
            "memory": f"{engine.memory_fraction:.0%}",
            "step overhead": f"{engine.step_overhead_s * 1e3:.2f} ms",
        }
        for name in engine_names()
        for engine in [load_engine(name)]
    ]


def _one(kind: str, name: str, json_output: bool) -> None:
    from specs.catalog import load_device, load_engine, load_node

    if kind == "models":
        from specs.architecture import load_architecture

        architecture = load_architecture(name)
        count = architecture.parameter_count()
        document: dict[str, object] = {
            "name": architecture.name,
            "family": architecture.family,
            "parameters": count.total,
            "active_parameters": count.active,
            "layers": len(architecture.layers),
            "max_position_embeddings": architecture.max_position_embeddings,
            "native_weights": architecture.native_weights_dtype.value,
            "kv_bytes_per_token_bf16": architecture.kv_bytes_per_token(DType.BF16, 1),
            "tensor_parallel": list(architecture.valid_tensor_parallel(16)),
        }
        if architecture.state_bytes(1):
            document["state_bytes_per_sequence"] = architecture.state_bytes(1)
        if architecture.omitted:
            document["left_out"] = list(architecture.omitted)
    else:
        load = {"devices": load_device, "nodes": load_node, "engines": load_engine}[kind]
        document = load(name).model_dump(mode="json")
    if json_output:
        print_json(document)
        return
    import yaml

    out().print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110).rstrip(), markup=False)


def _print(kind: str, rows: list[dict[str, object]]) -> None:
    made = table(kind, list(rows[0]), right=[name for name, value in rows[0].items() if str(value)[:1].isdigit()])
    made.columns[0].no_wrap = True
    for row in rows:
        made.add_row(*(str(value) for value in row.values()))
    out().print(made)
    if kind == "models":
        out().print(f"\n{ACTIVE}", markup=False)
