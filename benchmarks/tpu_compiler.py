"""Compiles one StableHLO program for a TPU that need not be there, prints the cost.

    .venv-tpu/bin/python benchmarks/tpu_compiler.py v5e:2x2 STEP.mlir STEP.hlo

The half of `benchmarks.tpu_compile` that runs in the environment of jax and libtpu,
which TensorFlow's versions conflict with; it imports nothing of ours.
"""

import importlib.metadata
import json
import os
import pathlib
import sys
import time

# Else libtpu asks for the metadata of a cloud that it is not in.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

from jax._src import compiler
from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir
from jax.experimental import topologies
from jaxlib import xla_client


def cost(topology_name: str, program: str) -> tuple[dict, str]:
    """Returns what the compiler says of a program on one device, and what it made of it.

    Args:
        topology_name: Such as v5e:2x2.
        program: A module of StableHLO.

    Returns:
        Figures as JSON values, and the optimised program as text of HLO.
    """
    topology = topologies.get_topology_desc(platform="tpu", topology_name=topology_name)
    device = topology.devices[0]
    options = compiler.get_compile_options(num_replicas=1, num_partitions=1)
    began = time.monotonic()
    with mlir.make_ir_context():
        module = ir.Module.parse(program)
        devices = xla_client.DeviceList((device,))
        executable = device.client.compile(module, devices, options)
    analysis = executable.cost_analysis()
    memory = executable.get_compiled_memory_stats()
    figures = {
        "flops": analysis["flops"],
        "bytes_accessed": analysis["bytes accessed"],
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "compile_seconds": time.monotonic() - began,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxlib", "libtpu")
        },
    }
    [optimised] = executable.hlo_modules()
    return figures, optimised.to_string()


if __name__ == "__main__":
    _, topology, source, target = sys.argv
    figures, optimised = cost(topology, pathlib.Path(source).read_text("utf-8"))
    pathlib.Path(target).write_text(optimised, "utf-8")
    print(json.dumps(figures))
