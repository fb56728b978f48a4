"""JSON that is read back: recipes, plans, scores, states and manifests."""

import json

from fuzz import bits

VALUES = (
    *(None, True, False, 0, -1, 1, 1 << 70, -(1 << 70), 10**400, 1e308, 0.5, -0.0),
    *("", "NaN", "Infinity", "x", "\ud800", "x" * 5000, [], {}, [[]], [None], {"": 0}),
    *([1, 2, 3], {"a": 1}, "../../x", "conv*", "__class__", "float", float("nan")),
    *(float("inf"), 10**5000, "\u0000", ["a", 1, None], {"do": "convert"}),
)


def damage_text(rng, text):
    """Returns the text of damaged JSON."""
    choice = rng.random()
    if choice < 0.1:
        data = bits.damage(rng, text.encode())
        return data.decode("utf-8", "surrogateescape")
    if choice < 0.13:
        return rng.choice(("[", '{"a":', "[[],")) * rng.choice((10, 2000, 100_000))
    if choice < 0.16:
        return rng.choice(("", " ", "null", "NaN", "-", "{}", "[]", '"x"', "1" * 9000))
    content = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = _damaged(rng, content)
    changed = dumps(content)
    if choice < 0.22:
        # The first member twice.
        changed = changed.replace("{", '{"format": 1, "format": 2, ', 1)
    return changed


def dumps(content):
    import sys

    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(content)
    finally:
        sys.set_int_max_str_digits(4300)


def _damaged(rng, content):
    """Returns content with one thing changed, on the way down at random."""
    if isinstance(content, dict) and content and rng.random() < 0.85:
        key = rng.choice(list(content))
        changed = dict(content)
        kind = rng.random()
        if kind < 0.1:
            del changed[key]
        elif kind < 0.2:
            changed[rng.choice(("x", "", "do", "name", "format", "__init__"))] = (
                rng.choice(VALUES)
            )
        elif kind < 0.25:
            changed[key] = content[rng.choice(list(content))]
        else:
            changed[key] = _damaged(rng, content[key])
        return changed
    if isinstance(content, list) and content and rng.random() < 0.8:
        at = rng.randrange(len(content))
        changed = list(content)
        kind = rng.random()
        if kind < 0.15:
            del changed[at]
        elif kind < 0.3:
            changed *= rng.choice((2, 50))
        elif kind < 0.35:
            return {"0": content}
        else:
            changed[at] = _damaged(rng, content[at])
        return changed
    if rng.random() < 0.1:
        for _ in range(rng.choice((5, 60))):
            content = [content] if rng.random() < 0.5 else {"a": content}
        return content
    return rng.choice(VALUES)


class _Texts:
    """Damaged copies of some texts."""

    def __init__(self, folder, work):
        del folder
        self._work = work
        self._texts = self.texts()

    def mutate(self, rng):
        name = rng.choice(sorted(self._texts))
        path = self._work / f"{name}.json"
        text = damage_text(rng, self._texts[name])
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        return name, path

    def names(self, given):
        return [str(given[1]), str(given[1].parent)]


class RecipeReader(_Texts):
    """`Recipe.load`, and what may be done with one before a model is there."""

    def texts(self):
        import tensorflow  # noqa: F401 (methods need it; not in the time of a case)

        from tfopt.recipe import Recipe

        self._cls = Recipe
        train = {
            "do": "train",
            "epochs": 2,
            "learning_rate": 0.001,
            "methods": [
                {"name": "prune", "final_sparsity": 0.8, "begin_step": 5},
                {"name": "quantize_aware"},
            ],
        }
        convert = {"do": "convert", "quantization": "int8", "sparse": False}
        rules = [
            {"layers": "conv*", "precision": "float"},
            {"layers": "dense", "sparsity": 0.5},
        ]
        graph = {"do": "transform_graph", "transforms": ["remove_device"]}
        recipes = {
            "train": Recipe(steps=[train, convert], rules=rules, name="a"),
            "graph": Recipe(steps=[graph], seed=3),
            "once": Recipe(steps=[{"do": "prune_once", "sparsity": 0.5}, convert]),
        }
        return {name: json.dumps(r.to_json()) for name, r in recipes.items()}

    def read(self, given):
        recipe = self._cls.load(given[1])
        str(recipe), recipe.digest(), recipe.target, recipe.trains
        recipe.save(self._work / "again.json")
        assert self._cls.load(self._work / "again.json") == recipe


class JsonReader(_Texts):
    """Manifests, tuning caches, scores, sensitivities, states and trials."""

    NAME = "a model"

    def texts(self):
        import dataclasses

        import tensorflow  # noqa: F401 (before memory is limited)

        from tfopt import artifacts
        from tfopt.checkpoint import callback
        from tfopt.finetuning import _resuming
        from tfopt.optimizing import _trials
        from tfopt.pruning._sensitivity import Sensitivity
        from tfopt.quantization import _result, _scores
        from tfopt.recipe import Recipe
        from tfopt.runner import _plan_cache, _planning

        self._modules = {
            "manifest": artifacts.read_manifest,
            "cache": lambda path: _plan_cache.load(str(path), self.NAME),
            "scores": lambda path: _scores.ScoreFile(path, "print"),
            "quantization": _result.QuantizationSensitivity.load,
            "sensitivity": lambda path: str(Sensitivity.load(path)),
            "state": lambda path: self._state(callback, path),
            "trial": lambda path: self._trial(_trials, path),
            "backup": lambda path: self._backup(_resuming, path),
        }
        file = self._work / "file"
        file.write_text("x")
        score = _result.Score(20.0, 0.9)
        layer = _result.Layer(
            ("CONV_2D",), 100, 400, {"a": _result.Constant(4, 0, 1, 0)}
        )
        trial = _trials.Trial(
            key="k",
            recipe=Recipe(steps=[{"do": "convert"}]),
            parent=None,
            path="p",
            figures=None,
            error=None,
            seconds=1.0,
        )
        contents = {
            "manifest": artifacts.describe(file, "tflite"),
            "cache": {
                "format": _plan_cache._FORMAT,
                "plans": {
                    self.NAME: _planning.Plan(2, 1, 8, "measured", {"2 x 1": 9.5})
                },
            },
            "scores": {
                "format": _scores._FORMAT,
                "fingerprint": "print",
                "scores": {"a": dataclasses.asdict(score)},
            },
            "state": {
                "version": 1,
                "next_number": 3,
                "monitor": ["loss", "min"],
                "checkpoints": [{"number": 2, "epoch": 1, "step": 5, "value": 0.5}],
                "best": {"number": 2, "epoch": 1, "step": 5, "value": 0.5},
                "removing": [1],
            },
            "trial": {
                **{f.name: getattr(trial, f.name) for f in dataclasses.fields(trial)},
                "seed": 0,
            },
            "backup": {"epochs": 2, "settings": _digest({})},
        }
        texts = {name: artifacts.to_json(item) for name, item in contents.items()}
        found = _result.QuantizationSensitivity(
            metric="accuracy",
            higher_is_better=True,
            baseline=0.9,
            layers={"a": layer},
            whole={"int8": score},
            alone={"int8": {"a": score}},
            restored={"int8": {}},
        )
        found.save(file)
        texts["quantization"] = file.read_text()
        Sensitivity(
            metric="loss",
            higher_is_better=False,
            baseline=1.0,
            sparsities=(0.5, 0.9),
            sizes={"a": 100},
            values={"a": (1.0, 2.0)},
        ).save(file)
        texts["sensitivity"] = file.read_text()
        return texts

    def _state(self, module, path):
        path.rename(path.with_name(module.STATE_FILE))
        return module.read_state(path.parent)

    def _trial(self, module, path):
        path.rename(path.with_name("trial.json"))
        return module._read(path.parent)

    def _backup(self, module, path):
        path.rename(path.with_name(module._STATE))
        return module.Backup(path.parent, {})._read()

    def read(self, given):
        name, path = given
        self._modules[name](path)


def _digest(settings):
    import hashlib

    from tfopt import artifacts

    return hashlib.sha256(artifacts.to_json(settings).encode()).hexdigest()
