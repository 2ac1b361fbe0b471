"""What settings come to where they leave something open: asked → resolved, and why."""

from dataclasses import dataclass, fields, replace

from prismfl.settings.schema import AUTO, SECTIONS, Features, Settings

_FEW_IMAGES = 500  # a client, on average: of so few, more and smaller steps make clearer images
_SMALL_BATCH = {1: 16, 3: 32}  # for so few, by channels
_ROUND_IMAGES = {1: 1600, 3: 3200}  # that a client generates in a round, by channels
_WHOLE_RATE, _WHOLE_RATE_LITE = 300, 400  # steps up to which the rate is 1, the second with EfficientNet-Lite0
_LEAST_RATE = 0.05  # what longer runs come to
_FINAL_RATE = 0.3
_SOFT_RATE, _SOFT_FINAL_RATE, _SOFT_CERTAINTY = 0.15, 0.05, 0.25  # of soft masks
_FEWEST_RATE, _FEWEST_FINAL_RATE = 1.3, 0.6  # where the fewest bits travel
_SCREEN, _SCREENED = 3.0, 4  # times the median, and clients a round from which on it says something
_NEAR_HALF = 0.25  # certainty below which no mask is improbable
_ALONE = 4  # times as many steps a round where the server searches alone: it is one search instead of many
_LITES = ("efficientnet-lite0",)  # that may be matched; lite2 judges
_LITE_SIDE = 64  # pixels a side that an EfficientNet-Lite is shown at least
_STEPS_A_MASK = 1000  # where there are steps for more masks than the model is to have
_SUMMARY = 64  # numbers that sum an image up
_WINDOWS = 3  # a side, of images without labels: beside labels there would be as many times as many entries


@dataclass(frozen=True)
class Matching:
    """What of a feature network is matched; it follows from the network, the images and whether noise is added.

    Attributes:
        scale: images are scaled up so many times.
        shift: and matched at all shifts of up to so many pixels, so that no grid of the network's strides is painted.
        windows: and, so many by so many, in windows of half a side, scaled up twice as much; 0 for none.
        layers: numbers of the matched maps, from 0; empty for those that the network is matched by.
        pool: largest side of a matched map in pixels; larger ones are averaged down, 0 for any.
        second_weight: of second moments, where first moments have 1.
        tone_weight: of tones in cells of the image, where first moments have 1.
        summary: numbers that sum an image up, whose products are matched once images are near; 0 for none.
    """

    scale: int = 1
    shift: int = 0
    windows: int = 0
    layers: tuple[int, ...] = ()
    pool: int = 0
    second_weight: float = 0.05
    tone_weight: float = 0.0
    summary: int = 0

    def __repr__(self) -> str:
        """Names a release among others: without a summary as before there were any, `shared` since labels share it."""
        told = [f"{item.name}={getattr(self, item.name)!r}" for item in fields(self)]
        return f"Matching({', '.join([*told, 'shared'] if self.summary else told[:-1])})"


@dataclass(frozen=True)
class SearchPlan:
    """What one local search does, once nothing is open; see `settings.schema.Search` and `Running`.

    Attributes:
        mask: `binary` or `soft`.
        local_steps: steps of Adam.
        batch_size: images a step.
        loss: `squared`, `unbiased` or `moving`.
        precision: `float32`, `bfloat16`, or `auto` for what is fast on the device.
        compiled: whether torch compiles its step, on a GPU.
        keeps_adam: whether it returns Adam's moments.
        beta1: Adam's first decay.
        common: whether all clients of a round draw masks with the same numbers, noise that few votes need not average.
    """

    mask: str = "binary"
    local_steps: int = 25
    batch_size: int = 64
    loss: str = "squared"
    precision: str = "auto"
    compiled: bool = False
    keeps_adam: bool = True
    beta1: float = 0.9
    common: bool = False


def named(features: Features, channels: int) -> Features:
    """The same with its network named, for images of so many channels."""
    auto = "efficientnet-lite0" if channels > 1 else "vgg"
    return replace(features, features=auto) if features.features == "auto" else features


def matching_of(settings: Settings, *, labelled: bool) -> Matching:
    """What is matched of a network that is named.

    Args:
        settings: resolved ones.  With ε noise is added to each entry, and fewer are better.
        labelled: whether there are as many entries a label.

    Returns:
        What `FeatureMap` takes.

    Examples:
        >>> from prismfl.settings.toml import settings_from
        >>> matching_of(resolved(settings_from({}), channels=3), labelled=True).scale
        4
    """
    private = settings.privacy.epsilon > 0
    if settings.features.network in _LITES:
        scale = max(1, _LITE_SIDE // settings.pixels)
        windows = 0 if labelled or settings.search.loss == "moving" else _WINDOWS
        return Matching(scale, 2, windows, (), 2 if windows else 4, 0.0, 0.3, _summary_of(settings))
    return Matching(1, 0, 0, (), 8 if private else 0, 0.0 if private else 0.05, 0.0)


def masks_searched(settings: Settings) -> int:
    """Masks that a run searches, one after another: as many as the model is to have.

    Where later masks match how images differ, which the first cannot do, long runs search one for each thousand steps;
    the last ones are kept.

    Args:
        settings: resolved ones.

    Examples:
        >>> from prismfl.settings.toml import settings_from
        >>> asked = {"federation": {"mode": "one-shot", "rounds": 30}, "search": {"local_steps": 100}}
        >>> [masks_searched(resolved(settings_from(asked), channels)) for channels in (1, 3)]
        [1, 3]
    """
    rounds, search = settings.federation.rounds, settings.search
    more = min(rounds, rounds * search.local_steps // _STEPS_A_MASK) if _differing(settings) else 1
    return max(search.ensemble, more)


def _differing(settings: Settings) -> bool:
    """Whether later masks may match how images differ: not where each client adds noise of its own, which is more."""
    federation, calm = settings.federation, not settings.privacy.epsilon or settings.federation.secure_sum
    lite, moving = settings.features.network in _LITES, settings.search.loss == "moving"
    return federation.mode == "one-shot" and lite and calm and not moving


def _summary_of(settings: Settings) -> int:
    return _SUMMARY if _differing(settings) and masks_searched(settings) > 1 else 0


def resolved(settings: Settings, channels: int, images: float | None = None) -> Settings:
    """The settings with all written down that follows from the images.

    Args:
        settings: what was asked for.
        channels: of the images, 1 or 3.
        images: that a client has on average; None where nobody knows.

    Returns:
        Settings that leave nothing open but what follows from the machine.  Resolved again they stay as
        they are.

    Examples:
        >>> from prismfl.settings.toml import settings_from
        >>> settings = resolved(settings_from({}), channels=1, images=144.0)
        >>> settings.search.batch_size, settings.search.local_steps, settings.generator.width
        (16, 100, 16)
    """
    search, federation, features = settings.search, settings.federation, named(settings.features, channels)
    width = settings.generator.width or (16 if channels == 1 else 32)
    few = images is not None and images < _FEW_IMAGES
    batch = search.batch_size or (_SMALL_BATCH[channels] if few else 64)
    made = _ROUND_IMAGES[channels] * (_ALONE if federation.mode == "one-shot" else 1)
    loss = "unbiased" if features.network in _LITES else "squared"
    search = replace(
        search,
        batch_size=batch,
        local_steps=search.local_steps or max(1, made // batch),
        loss=loss if search.loss == "auto" else search.loss,
        final_rate=_final_rate(settings),
    )
    soft = search.mask == "soft" and federation.initial_certainty == AUTO
    certainty = _SOFT_CERTAINTY if soft else federation.certainty
    settings = replace(
        settings,
        features=features,
        generator=replace(settings.generator, width=width, channels=channels),
        search=search,
        federation=replace(federation, initial_certainty=certainty, screen=_screen(settings, certainty)),
    )
    return replace(settings, search=replace(search, learning_rate=first_rate(settings)))


def _screen(settings: Settings, certainty: float) -> float:
    federation = settings.federation
    if federation.screen != AUTO:
        return federation.screen
    seen = federation.mode == "masks" and not (federation.secure_sum and not settings.privacy.epsilon)
    enough = (federation.cohort or settings.data.clients) >= _SCREENED and certainty >= _NEAR_HALF
    return _SCREEN if seen and enough else 0.0


def _final_rate(settings: Settings) -> float:
    if settings.search.final_rate != AUTO:
        return settings.search.final_rate
    if settings.search.mask == "soft":
        return _SOFT_FINAL_RATE
    return _FEWEST_FINAL_RATE if settings.federation.uplink == "fewest" else _FINAL_RATE


def first_rate(settings: Settings) -> float:
    """The learning rate before it falls, of settings whose steps and network are known."""
    if settings.search.learning_rate:
        return settings.search.learning_rate
    if settings.search.mask == "soft":
        return _SOFT_RATE
    # A server alone has no masks of others to average: there large steps were better in long runs as well.
    steps = 1 if settings.federation.mode == "one-shot" else settings.federation.rounds * settings.search.local_steps
    whole = _WHOLE_RATE_LITE if settings.features.network in _LITES else _WHOLE_RATE
    least = max(_LEAST_RATE, min(1.0, whole / max(1, steps)))
    return least * _FEWEST_RATE if settings.federation.uplink == "fewest" else least


def plan_of(settings: Settings, *, compiled: bool = False) -> SearchPlan:
    """What each local search of resolved settings does on this machine.

    Args:
        settings: resolved ones.
        compiled: whether torch compiles the step, on a GPU.

    Returns:
        What `local_search` takes.

    Examples:
        >>> from prismfl.settings.toml import settings_from
        >>> plan = plan_of(resolved(settings_from({"search": {"batch_size": 32}}), channels=1))
        >>> plan.batch_size, plan.local_steps, plan.beta1
        (32, 50, 0.9)
    """
    search, running = settings.search, settings.running
    return SearchPlan(
        mask=search.mask,
        local_steps=search.local_steps,
        batch_size=search.batch_size,
        loss=search.loss,
        precision=running.precision,
        compiled=compiled,
        keeps_adam=settings.keeps_adam,
        beta1=0.9 if settings.keeps_adam else 0.5,
        common=settings.federation.uplink == "fewest",
    )


def notes_of(asked: Settings, found: Settings) -> dict[str, str]:
    """For each setting that was left open, what was asked and by what rule it came to what it is: by `section.name`."""
    notes = {}
    for section, kind in SECTIONS.items():
        for item in fields(kind):
            before, now = (getattr(getattr(one, section), item.name) for one in (asked, found))
            if before != now:
                rule = item.metadata["about"].rpartition("; ")[2]
                notes[f"{section}.{item.name}"] = f"asked: {before!r}; {rule}"
    return notes
