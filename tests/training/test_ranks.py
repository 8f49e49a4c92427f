"""Several ranks do what one does: the same losses, the same tokens after a change of their number, faults got over."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.fault_job import AT
from noria.data.shards import TokenStream, write_shards
from noria.model import ModelConfig, Transformer
from noria.training import LoopConfig, Progress, TokenBatch
from noria.training.checkpoint import complete, steps_of
from noria.training.launch import LaunchError, launch
from noria.training.parallel import ALONE, Ranks, parallelize, share, whole
from noria.training.pretraining import pretrain
from noria.training.worker import Job, layout_for, pretrain_together

# fp32 sums in another order: 3e-7 was measured after 20 steps; a wrong normalisation would be off by a factor.
BOUND = 2e-5


def job(folder, layout="alone", processes=1, fault="none", steps=40, **options):
    """(result, events that were told) of benchmarks.fault_job. On a busy machine any rank may really be slow."""
    command = [sys.executable, "-m", "benchmarks.fault_job", str(folder), "--layout", layout, "--fault", fault]
    told = []
    launch([*command, "--steps", str(steps)], processes, told.append, **options)
    ignored = {"step"} if fault == "slow_rank" else {"step", "straggler"}
    result = folder / "result.json"
    events = [line for line in told if line["kind"] not in ignored]
    return json.loads(result.read_text()) if result.exists() else None, events


def assert_close(losses, expected):
    assert len(losses) == len(expected)
    assert max(abs(own - other) for own, other in zip(losses, expected, strict=True)) < BOUND


@pytest.mark.parametrize("rows, count, micro", [(7, 2, 2), (8, 4, 1), (3, 4, 2), (1, 2, 8)])
def test_every_row_goes_to_one_rank_and_sharded_ranks_get_equally_many_micro_batches(rows, count, micro):
    tokens = torch.arange(rows)[:, None].expand(rows, 5).contiguous()
    batch = TokenBatch(tokens, torch.ones(rows, 4))
    for sharded in (False, True):
        parts = [Ranks(rank, count, sharded).micro_batches(batch, micro) for rank in range(count)]
        weighted = [int(t) for part in parts for m in part for t in m.tokens_BT[:, 0] if m.w_ce.any()]
        assert sorted(weighted) == list(range(rows))
        assert not sharded or len({len(part) for part in parts}) == 1


def test_alone_nothing_is_gathered_or_cut():
    tensor = torch.randn(4, 3)
    assert whole(tensor, like=tensor) is tensor and share(tensor, like=tensor) is tensor
    assert torch.equal(ALONE.gather(tensor[0]), tensor[:1])
    with pytest.raises(RuntimeError, match="start with torchrun"):
        parallelize(torch.nn.Linear(2, 2), "shard")


def test_small_models_are_replicated_and_large_ones_sharded():
    shape = {"vocab_size": 50_000, "heads": 8, "kv_heads": 8, "context": 512}
    assert layout_for(ModelConfig(**shape, width=64, layers=2, ffn_width=128)) == "replicate"
    assert layout_for(ModelConfig(**shape, width=1024, layers=12, ffn_width=4096)) == "shard"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return job(tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["replicate", "shard"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_one_two_and_four_processes_give_the_same_losses(tmp_path, alone, layout, processes):
    """Muon under FSDP2 included: were its matrices orthogonalised by shards, losses would part at once."""
    assert_close(job(tmp_path, layout, processes)[0]["losses"], alone["losses"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "first, then, processes", [("shard", "shard", 4), ("shard", "alone", 1), ("replicate", "shard", 2)]
)
def test_a_run_goes_on_with_another_number_of_ranks_or_layout(tmp_path, alone, first, then, processes):
    """The same tokens in the same order. (At the same number of ranks, the same bits: see the killed rank below.)"""
    assert job(tmp_path, first, 2, "left_early")[0] is None
    result, _ = job(tmp_path, then, processes)
    assert_close(result["losses"], alone["losses"])
    assert steps_of(complete(tmp_path / "checkpoints")[0]) == 25


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["replicate", "shard"])
def test_a_killed_rank_is_named_and_the_run_ends_in_the_undisturbed_bits(tmp_path, layout):
    calm, _ = job(tmp_path / "calm", layout, 2, steps=AT + 10)
    result, events = job(tmp_path / "killed", layout, 2, "killed_rank", steps=AT + 10)
    assert [(event["kind"], event["evidence"]["ranks"]) for event in events] == [("worker_died", (1,))]
    assert f"rank 1 of 2 was ended by signal 9 in step {AT}" in events[0]["message"]
    assert result["weights"] == calm["weights"] and result["losses"] == calm["losses"]


@pytest.mark.slow
def test_a_killed_rank_can_be_done_without(tmp_path):
    result, _ = job(tmp_path / "killed", "replicate", 2, "killed_rank", steps=AT + 10, least_processes=1)
    assert_close(result["losses"], job(tmp_path / "alone", steps=AT + 10)[0]["losses"])


@pytest.mark.slow
def test_a_replica_that_drifts_is_outvoted_named_and_brought_back(tmp_path):
    result, events = job(tmp_path / "drift", "replicate", 3, "replica_drift", steps=AT + 20)
    drift = next(event for event in events if event["kind"] == "hardware")
    assert drift["evidence"]["ranks"] == [2] and "differ from its replicas" in drift["message"]
    assert any(event["kind"] == "worker_died" and event["cause"] == "hardware" for event in events)
    assert result["weights"] == job(tmp_path / "calm", "replicate", 3, steps=AT + 20)[0]["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["weight_bit_low", "gradient_bit"])
@pytest.mark.parametrize("layout", ["replicate", "shard"])
def test_a_flipped_bit_on_one_rank_is_blamed_on_that_rank_and_undone(tmp_path, layout, fault):
    calm, _ = job(tmp_path / "calm", layout, 2, steps=AT + 5)
    result, events = job(tmp_path / "flipped", layout, 2, fault, steps=AT + 5)
    assert events[0]["kind"] == "hardware" and events[0]["step"] == AT
    assert 1 in events[0]["evidence"]["ranks"] and (layout == "shard" or events[0]["evidence"]["ranks"] == [1])
    assert result["weights"] == calm["weights"]


@pytest.mark.slow
def test_a_slow_rank_is_named(tmp_path):
    _, events = job(tmp_path, "replicate", 2, "slow_rank", steps=25)
    assert [(event["kind"], event["evidence"]["ranks"]) for event in events] == [("straggler", [1])]


@pytest.mark.slow
def test_what_no_restart_can_help_is_said_at_once(tmp_path):
    command = [sys.executable, "-c", 'print(\'{"kind": "error", "message": "no such shards"}\'); exit(2)']
    with pytest.raises(LaunchError, match=r"rank \d of 2 ended with exit code 2 in step 0: no such shards"):
        launch(command, 2, lambda told: None)
    with pytest.raises(LaunchError, match=r"exit code 1.*death number 3, and 2 restarts are allowed"):
        launch([sys.executable, "-c", "exit(1)"], 2, lambda told: None, restarts=2)


@pytest.fixture
def shards(tmp_path):
    generator = np.random.default_rng(0)
    ids = [np.cumsum(generator.integers(1, 3, 200)).astype(np.uint16) % 32 for _ in range(5)]
    write_shards(tmp_path / "shards" / "a" / "train", pa.table({"id": [str(i) for i in range(5)]}), ids, "t")
    return tmp_path / "shards"


def test_shards_of_another_tokenizer_are_refused_by_source(shards):
    stream = TokenStream(shards, {"a": 1.0}, 16, 6, seed=1)
    stream.refuse_other_tokenizer("t")
    with pytest.raises(
        ValueError, match="source 'a' was tokenised with tokenizer t, and this run uses u; make the shards"
    ):
        stream.refuse_other_tokenizer("u")
    shape = ModelConfig(vocab_size=16, width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, context=16)
    with pytest.raises(ValueError, match=r"step 0: the shards hold token 31, and the model has 16 tokens"):
        pretrain(Transformer(shape), stream, LoopConfig(steps=1, learning_rate=0.01))


@pytest.mark.slow
def test_pretraining_on_two_processes_is_that_of_one_and_torchrun_can_start_it(tmp_path, shards):
    shape = ModelConfig(vocab_size=32, width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, context=16)
    loop = LoopConfig(steps=12, learning_rate=0.02, warmup_steps=2)
    common = {"weights": {"a": 1.0}, "sequence_length": 16, "batch_rows": 6, "seed": 1, "layout": "shard"}
    task = Job(model=shape, loop=loop, shards=shards, folder=tmp_path / "job", **common)
    told: list[int] = []
    fresh = Transformer(shape, seed=1)
    expected = pretrain(fresh, TokenStream(shards, {"a": 1.0}, 16, 6, seed=1), loop)
    state, history = pretrain_together(task, 2, Progress(on_step=lambda *step: told.append(step[0])))
    assert told == list(range(12))
    assert_close([row["loss_ce"] for row in history], [row["loss_ce"] for row in expected])
    for name, tensor in fresh.state_dict().items():
        torch.testing.assert_close(state[name], tensor, atol=1e-5, rtol=1e-4)
    path = tmp_path / "again.json"
    path.write_text(task.model_copy(update={"folder": tmp_path / "again"}).model_dump_json())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = ["-m", "noria.training.worker", str(path)]
    subprocess.run([*torchrun, *worker], check=True, timeout=300, stdout=subprocess.DEVNULL)
    assert json.loads((tmp_path / "again" / "history.json").read_text()) == history
