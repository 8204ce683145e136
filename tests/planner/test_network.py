"""The declared network: what its statements mean, which nodes a plan takes, what its cables carry."""

import pytest

from planner.network.arrange import arranged
from planner.network.ports import Ports
from planner.network.reach import port_between, port_in_pool
from planner.network.topology import declared_network
from planner.optimize.certify import recheck
from planner.plan import make_plan
from specs.deployment import parse_deployment
from specs.errors import InputError, NoPlanError

SPEC = """
models: {{big: {{architecture: meta-llama/Llama-3.1-405B, weights: bf16}}}}
hardware:
  pools:
    - {{name: a, device: h100-sxm, count: 32, gpus_per_node: 8, price: $2/h}}
    - {{name: b, device: a100-sxm, count: 8, gpus_per_node: 8, price: $9/h}}
  network:
{network}
traffic:
  - {{name: chat, arrivals: {{rate: 0.5/s, process: constant}}, prompt_tokens: 512, output_tokens: 32,
      slo: {{ttft: {{p90: 20s}}, tpot: {{p90: 1s}}}}}}
"""
LEAVES = """
    graph:
      - {{between: [a/0, left], bandwidth: {access}, latency: 1us}}
      - {{between: [a/2, left], bandwidth: {access}, latency: 1us}}
      - {{between: [a/1, right], bandwidth: {access}, latency: 1us}}
      - {{between: [a/3, right], bandwidth: {access}, latency: 1us}}
      - {{between: ["b/*", right], bandwidth: {access}}}
      - {{between: [left, right], bandwidth: {spine}, latency: 2us}}
"""


def spec_of(network):
    return parse_deployment(SPEC.format(network=network), "spec").spec


def leaves(access="3200Gb/s", spine="100Gb/s"):
    return spec_of(LEAVES.format(access=access, spine=spine))


def test_paths_take_the_fewest_cables_and_add_their_latencies():
    network = declared_network(leaves().hardware)
    assert network.path("a/0", "a/1") == ("a/0", "left", "right", "a/1")
    assert network.bytes_per_s("a/0", "a/1") == 100e9 / 8
    assert network.latency_s("a/0", "a/1") == pytest.approx(4e-6)
    assert network.bytes_per_s("a/0", "a/2") == 400e9


def test_of_equally_long_paths_the_widest_is_taken():
    graph = """
    graph:
      - {between: ["a/*", narrow], bandwidth: 10Gb/s}
      - {between: ["a/*", wide], bandwidth: 20Gb/s}
      - {between: ["b/*", wide], bandwidth: 20Gb/s}
"""
    network = declared_network(spec_of(graph).hardware)
    assert network.path("a/0", "a/3") == ("a/0", "wide", "a/3")


def test_a_device_is_planned_with_its_part_of_the_narrowest_path_of_its_pool():
    hardware = leaves().hardware
    a, b = hardware.pools
    assert port_in_pool(hardware, a) == (100e9 / 8 / 8, pytest.approx(4e-6))
    assert port_between(hardware, b, a) == (100e9 / 8 / 8, pytest.approx(3e-6))


def test_a_link_of_a_pool_goes_before_the_network_of_all():
    links = (
        "    bandwidth: 400Gb/s\n    links: [{between: [a, a], bandwidth: 80Gb/s}, {between: [a, b], bandwidth: 8Gb/s}]"
    )
    hardware = spec_of(links).hardware
    a, b = hardware.pools
    assert port_in_pool(hardware, a) == (10e9, None)
    assert port_in_pool(hardware, b) == (50e9, None)
    assert port_between(hardware, b, a) == (1e9, None)


def test_a_node_without_a_cable_is_named():
    with pytest.raises(InputError, match=r"no cables lead from a/0 to a/3 and 1 more") as caught:
        spec_of('    graph: [{between: ["a/0-2", leaf], bandwidth: 400Gb/s}]')
    assert caught.value.field == "hardware.network.graph"


def test_a_node_that_there_is_not_is_named():
    with pytest.raises(InputError, match=r"'a/4' names no nodes of pool 'a'") as caught:
        spec_of('    graph: [{between: ["a/*", leaf], bandwidth: 400Gb/s}, {between: [a/4, leaf], bandwidth: 1Gb/s}]')
    assert caught.value.field == "hardware.network.graph[1].between"


def test_graph_and_links_contradict_each_other():
    with pytest.raises(InputError, match="stands beside `graph`"):
        spec_of(
            "    links: [{between: [a, b], bandwidth: 8Gb/s}]\n"
            + LEAVES.format(access="1Gb/s", spine="1Gb/s").lstrip("\n")
        )


@pytest.fixture(scope="module")
def plan():
    return make_plan(leaves(), ".")


def test_stages_on_two_nodes_take_nodes_of_one_leaf(plan):
    """405B in bf16 needs two nodes; first fit takes a/0 and a/1, which only the spine joins."""
    nodes = {slot.node for group in plan.groups for item in group.placement for slot in item.slots}
    assert nodes in ({0, 2}, {1, 3})
    assert all("left" not in load.between or "right" not in load.between for load in plan.network)


def test_cables_of_the_plan_are_in_the_recheck(plan):
    rows = [check for check in recheck(plan) if check.law.startswith("network")]
    assert len(rows) == len(plan.network) + 1
    assert all(check.holds for check in rows)
    emptied = plan.model_copy(update={"network": ()})
    assert any(not check.holds for check in recheck(emptied) if check.law.startswith("network"))
    full = plan.network[0].model_copy(update={"bytes_per_s": plan.network[0].capacity_bytes_per_s})
    broken = plan.model_copy(update={"network": (full, *plan.network[1:])})
    assert any(not check.holds for check in recheck(broken) if check.law.startswith("network"))


def test_flows_that_no_exchange_fits_are_no_plan(plan):
    with pytest.raises(NoPlanError, match="the network does not carry the plan") as caught:
        arranged(plan, leaves(access="1Mb/s", spine="1Mb/s").hardware)
    assert caught.value.mends


def test_without_a_graph_ports_of_the_nodes_are_the_cables(plan):
    hardware = spec_of("    bandwidth: 400Gb/s").hardware
    placed = arranged(plan, hardware)
    assert {load.capacity_bytes_per_s for load in placed.network} == {8 * 50e9}
    ports = {pool.name: 50e9 for pool in hardware.pools}
    across = Ports(hardware, ports).cables("a/0", "b/0")
    assert list(across) == [("a/0", "switch of a"), ("switch of a", "switch of b"), ("switch of b", "b/0")]
