import torch
from openlora_models import Served, prompt_of, request, run, tokens_of

from openledger.core.values import SamplingParameters
from openledger.openlora.sampling import TokenChooser, choose_tokens
from openledger.openlora.torch_engine import EngineOptions, TorchEngine


def _draw(logits: list[float], count: int = 400, **sampling: float) -> list[int]:
    chooser = TokenChooser(SamplingParameters(**{"temperature": 1.0, "seed": 3, **sampling}))  # type: ignore[arg-type]
    return [chooser.choose(torch.tensor(logits)) for _ in range(count)]


class TestChooser:
    def test_follows_the_probabilities(self) -> None:
        """ln 3 apart: three to one."""
        assert 0.70 < _draw([1.0986, 0.0], 2000).count(0) / 2000 < 0.80

    def test_temperature_flattens(self) -> None:
        assert _draw([2.0, 0.0], temperature=10.0).count(1) > _draw([2.0, 0.0], temperature=0.5).count(1) + 50

    def test_top_p_keeps_the_smallest_set_that_reaches_it(self) -> None:
        """Probabilities 0.5, 0.3, 0.2."""
        logits = torch.tensor([0.5, 0.3, 0.2]).log().tolist()
        assert set(_draw(logits, top_p=0.49)) == {0}
        assert set(_draw(logits, top_p=0.6)) == {0, 1}
        assert set(_draw(logits, top_p=0.81)) == {0, 1, 2}

    def test_a_vanishing_temperature_is_greedy(self) -> None:
        assert set(_draw([1.0, 2.0, 1.5], temperature=1e-6)) == {1}

    def test_rows_that_are_not_finite_give_none(self) -> None:
        logits = torch.tensor([[0.0, 1.0], [0.0, float("nan")], [float("inf"), 0.0], [1.0, 0.0]])
        greedy = TokenChooser(SamplingParameters())
        assert choose_tokens(logits, [greedy] * 4) == [1, None, None, 0]


class TestSeeds:
    def test_the_same_seed_gives_the_same_answer_in_any_batch(self, served: Served) -> None:
        mine = request("r", prompt_of(9), temperature=1.0, top_p=0.9, seed=11)
        others = [request(str(number), prompt_of(4), temperature=1.0, seed=number) for number in range(3)]
        alone = run(TorchEngine(served.base, EngineOptions(max_batch=1)), mine)["r"]
        assert tokens_of(run(TorchEngine(served.base), *others, mine)["r"]) == tokens_of(alone)

    def test_seeds_differ(self, engine: TorchEngine) -> None:
        requests = [request(str(seed), prompt_of(9), temperature=2.0, seed=seed) for seed in range(4)]
        assert len({tuple(tokens_of(events)) for events in run(engine, *requests).values()}) == 4

    def test_any_integer_is_a_seed(self, engine: TorchEngine) -> None:
        requests = [request(str(seed), prompt_of(3), temperature=1.0, seed=seed) for seed in (-1, 1 << 80)]
        assert all(events[-1].finish_reason in ("stop", "length") for events in run(engine, *requests).values())
