"""Where an engine computes: what is asked for, what there is, and what is refused by name."""

import pytest
import torch
from openlora_models import (
    Served,
    assert_same_greedy,
    generate_alone,
    peft_model,
    prompt_of,
    request,
    run,
    tokens_of,
)

from openledger.core.errors import InvalidInput, Unavailable
from openledger.openlora import torch_engine
from openledger.openlora.deployment import ReplicaOptions, ScalingOptions, build_openlora
from openledger.openlora.devices import find_device, find_kernels
from openledger.openlora.kv import KeyValueBlocks
from openledger.openlora.lora_torch import TorchProducts
from openledger.openlora.packing import Piece, pack
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

CPU = torch.device("cpu")


def _with_gpus(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


class TestDevice:
    def test_auto_is_the_gpu_where_there_is_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _with_gpus(monkeypatch, False)
        assert find_device("auto") == CPU
        _with_gpus(monkeypatch, True)
        assert find_device("auto") == torch.device("cuda", 0)

    def test_a_processors_kernels_want_the_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _with_gpus(monkeypatch, True)
        assert find_device("auto", "avx512") == CPU
        assert find_device("auto", "torch").type == "cuda"

    def test_a_gpu_that_is_not_there_is_refused(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        _with_gpus(monkeypatch, False)
        with pytest.raises(InvalidInput) as caught:
            TorchEngine(served.base, EngineOptions(device="cuda"))
        assert (caught.value.code, caught.value.param) == ("no_device", "device")

    def test_int8_is_refused_on_a_gpu(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        _with_gpus(monkeypatch, True)
        with pytest.raises(InvalidInput) as caught:
            TorchEngine(served.base, EngineOptions(weights="int8", kernels="torch"))
        assert (caught.value.code, caught.value.param) == ("no_int8", "weights")
        assert "CPU only" in str(caught.value)

    def test_an_unknown_name_is_refused(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            find_device("tpu")
        assert (caught.value.code, caught.value.param) == ("no_device", "device")

    def test_the_engine_says_where_it_computes(self, served: Served) -> None:
        assert TorchEngine(served.base, EngineOptions(device="cpu")).describe()["device"] == "cpu"

    def test_an_adapter_that_finds_no_memory_is_refused_by_name(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And is loaded once there is some."""
        engine = TorchEngine(served.base, EngineOptions(kernels="torch", device="cpu"))
        digest, folder = served.digests["one"], served.folders["one"]

        def full(*_: object) -> None:
            raise torch.OutOfMemoryError

        with monkeypatch.context() as patched:
            patched.setattr(TorchProducts, "_kept", full)
            with pytest.raises(Unavailable) as caught:
                engine.load(digest, folder)
        assert (caught.value.code, caught.value.param) == ("no_memory_for_adapter", "digest")
        assert engine.resident() == ()
        engine.load(digest, folder)
        assert engine.resident() == (digest,)


class TestKernels:
    def test_triton_is_not_for_a_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(InvalidInput) as caught:
            find_kernels(CPU, "triton")
        assert (caught.value.code, caught.value.param) == ("unknown_kernels", "kernels")

    def test_a_processors_are_not_for_a_gpu(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            find_kernels(torch.device("cuda", 0), "avx512")
        assert caught.value.code == "unknown_kernels"

    def test_torch_alone_computes_on_a_gpu_where_asked(self) -> None:
        assert find_kernels(torch.device("cuda", 0), "torch") is None


class _Broken(Exception):
    pass


class _BrokenKernels:
    """Such as need more shared memory than a GPU has: known at the first call."""

    failures = (_Broken,)

    def __repr__(self) -> str:
        return "broken"

    def store(self, *_: object) -> None:
        raise _Broken("out of resource")

    attend = store


class TestKernelsThatDoNotRun:
    @pytest.fixture(autouse=True)
    def found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch_engine, "find_kernels", lambda *_: _BrokenKernels())

    def test_torch_computes_in_their_place_and_says_so(self, served: Served, caplog: pytest.LogCaptureFixture) -> None:
        engine = TorchEngine(served.base, EngineOptions(max_batch=2, device="cpu"))
        told = engine.describe()
        assert (told["lora_path"], told["attention_path"]) == ("torch, packed baddbmm", "torch, piece by piece")
        assert [record.getMessage() for record in caplog.records if record.name == torch_engine.__name__] == [
            "torch computes attention and adapters, more slowly than kernels: "
            "the kernels broken don't run on this device: out of resource"
        ]
        engine.load(served.digests["one"], served.folders["one"])
        events = run(engine, request("r", prompt_of(9), served.digests["one"]))["r"]
        assert_same_greedy(tokens_of(events), generate_alone(peft_model(served, "one"), prompt_of(9), 12))

    def test_are_refused_by_name_where_they_were_asked_for(self, served: Served) -> None:
        with pytest.raises(InvalidInput) as caught:
            TorchEngine(served.base, EngineOptions(kernels="triton", device="cpu"))
        assert (caught.value.code, caught.value.param) == ("kernels_failed", "kernels")
        assert "out of resource" in str(caught.value)
        assert caught.value.fix == "kernels: torch"


class TestWithoutTriton:
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    def test_torch_computes_the_same_on_a_gpu(self, served: Served) -> None:
        engine = TorchEngine(served.base, EngineOptions(max_batch=8, kernels="torch", device="cuda"))
        engine.load(served.digests["one"], served.folders["one"])
        events = run(engine, request("r", prompt_of(9), served.digests["one"]))["r"]
        assert engine.describe()["lora_path"] == "torch, packed baddbmm"
        assert_same_greedy(tokens_of(events), generate_alone(peft_model(served, "one"), prompt_of(9), 12))


class TestReplica:
    @pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (1, "cuda"), (0.5, "cuda")])
    def test_computes_on_a_gpu_just_where_it_asked_for_one(self, num_gpus: float, device: str) -> None:
        """Ray leaves a node's GPUs in sight of those that asked for none."""
        application = build_openlora(None, "unused", scaling=ScalingOptions(num_gpus=num_gpus))
        assert _engine_of(application).device == device

    def test_that_asked_for_a_gpu_and_finds_none_is_refused(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would hold a GPU and compute on the CPU."""
        _with_gpus(monkeypatch, False)
        with pytest.raises(InvalidInput) as caught:
            TorchEngine(served.base, _engine_of(build_openlora(None, "unused", scaling=ScalingOptions(num_gpus=1))))
        assert caught.value.code == "no_device"
        assert "gpus_per_replica" in (caught.value.fix or "")

    def test_keeps_a_device_that_was_named(self) -> None:
        replica = ReplicaOptions(engine=EngineOptions(device="cuda"))
        assert _engine_of(build_openlora(None, "unused", replica=replica)).device == "cuda"


def _engine_of(application: object) -> EngineOptions:
    return application._bound_deployment.init_args[2].engine  # type: ignore[attr-defined, no-any-return]


class TestGivingWay:
    """A GPU's calls return before it has computed."""

    @pytest.mark.parametrize("what", ["score", "embed"])
    def test_waits_for_what_was_queued_before_people_are_asked(
        self, served: Served, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        engine, told = TorchEngine(served.base, EngineOptions(device="cpu", step_tokens=16)), list[str]()
        engine.load(served.digests["one"], served.folders["one"])
        monkeypatch.setattr(engine._model, "wait", lambda: told.append("waits"))
        engine.give_way_to(lambda: told.append("people"))
        if what == "score":
            engine.score(prompt_of(9), prompt_of(9), [served.digests["one"]])
        else:
            engine.embed([prompt_of(30)], served.digests["one"])
        assert len(told) > 2
        assert told == ["waits", "people"] * (len(told) // 2)


class TestPacking:
    def test_longer_pieces_are_short_where_a_device_takes_them_so(self) -> None:
        kv = KeyValueBlocks(8)
        pieces = [Piece(token_ids=prompt_of(40), blocks=kv.allocate(3)), Piece(token_ids=[5], blocks=kv.allocate(1))]
        assert pack(pieces, kv).num_short == 1
        assert pack(pieces, kv, longest=40).num_short == 2
        assert pack(pieces, kv, longest=39).num_short == 1

    def test_a_step_that_is_there_already_is_not_copied(self) -> None:
        kv = KeyValueBlocks(2)
        step = pack([Piece(token_ids=[5, 6], blocks=kv.allocate(1))], kv)
        assert step.to(CPU) is step
