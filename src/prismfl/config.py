"""Every setting of a run: frozen, validated, TOML in and out.

A field's metadata says what it means and what it may be; the command line is made from it.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from prismfl.errors import SettingError


def _setting(
    default: Any,
    about: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    limits = {"least": least, "most": most, "above": above, "choices": choices}
    return field(default=default, metadata={"about": about, **limits})


AUTO = -1  # what a setting says that is to follow from others

# Feature networks with a name of their own; any other is a file.
FEATURE_NETS = ("auto", "efficientnet-lite0", "vgg", "vgg19", "random")


@dataclass(frozen=True)
class Data:
    """Which images, and how they are spread over the clients."""

    dataset: str = _setting(
        "digits",
        "data set; folder takes any image folder or zip, hf what Hugging Face's datasets opens, "
        "arrays marks a run on a caller's arrays",
        choices=("digits", "mnist", "fmnist", "kmnist", "cifar10", "celeba", "folder", "hf", "arrays"),
    )
    data_dir: str = _setting("", "folder (or zip) that holds the data set; with hf, or the data set's name")
    clients_from: str = _setting("", "pattern of one image folder or zip a client, as 'sites/*'")
    people: str = _setting(
        "", "pattern that tells whose image each file of a folder is, as 'person([0-9]+)': persons are dealt whole"
    )
    attribute: str = _setting("Male", "attribute that is celeba's label")
    image_column: str = _setting("", "hf's column of images; none guesses image or img")
    label_column: str = _setting("", "hf's column of labels; none guesses label")
    classes: str = _setting("", "classes to keep: names, numbers from 0 and ranges (0-4,7); none keeps all")
    clients: int = _setting(
        10, "number of clients; 0, with clients_from alone, takes as many as there are", least=0, most=1_000_000
    )
    partition: str = _setting(
        "shards",
        "how images are spread: shards are label-sorted; attribute gives each client one label; "
        "given takes one top folder a client",
        choices=("iid", "shards", "dirichlet", "attribute", "given"),
    )
    shards: int = _setting(40, "label-sorted shards, a multiple of the clients", least=1)
    concentration: float = _setting(0.005, "concentration of the Dirichlet partition", above=0.0, most=1e6)
    least_images: int = _setting(
        1, "Dirichlet partition: fewest images of a client; what is missing comes from the largest ones", least=1
    )


@dataclass(frozen=True)
class Generator:
    """The frozen random network whose mask is searched."""

    size: int = _setting(0, "pixels a side; 0 takes 16 for digits, else 32", choices=(0, 16, 32, 64))
    width: int = _setting(
        0, "channels of the last block; 0 takes 16 for grey images, 32 for colour", least=0, most=1024
    )
    latent: int = _setting(64, "latent normals an image", least=1, most=65536)
    conditional: bool = _setting(
        True, "make images by label and match each label's moments, where images have labels (2 … 1000 of them)"
    )


@dataclass(frozen=True)
class Features:
    """The frozen feature network that training matches, and what is matched of it."""

    features: str = _setting(
        "auto",
        "feature network to match: efficientnet-lite0 (ImageNet), vgg (embedded, small), vgg19 (needs weights), random"
        " (never trained), or a file of `prismfl pretrain`; auto: efficientnet-lite0 for colour, vgg for grey",
    )
    weights: str = _setting(
        "",
        "file of the network's weights: torchvision's vgg19 (.pth, or .safetensors), or another copy of"
        " efficientnet-lite0's",
    )
    features_sha256: str = _setting("", "SHA-256 that the network's weights must have; filled in when a run begins")
    feature_scale: int = _setting(
        0,
        "images are scaled up so many times for the network; 0: efficientnet-lite0 to 64 pixels, others not at all",
        least=0,
        most=16,
    )
    shift: int = _setting(
        AUTO,
        "images are matched at all shifts of up to so many pixels, so that no grid of the network's strides is painted;"
        " -1: 2 with efficientnet-lite0, else none",
        least=AUTO,
        most=8,
    )
    layers: tuple[int, ...] = _setting(
        (), "numbers of the matched layers, from 0; none names those that the network is matched by", least=0
    )
    pool: int = _setting(
        AUTO,
        "largest side of a matched map: larger ones are averaged down to it; 0 for any; -1: with efficientnet-lite0 4"
        " of labelled images and 8 of others, with other networks 8 where epsilon is set, else any",
        choices=(AUTO, 0, 1, 2, 4, 8, 16),
    )
    second_weight: float = _setting(
        float(AUTO),
        "weight of second moments; first moments have 1; -1: 0.05, and 0 with efficientnet-lite0 or epsilon",
        least=AUTO,
        most=1e6,
    )
    tone_weight: float = _setting(
        float(AUTO),
        "weight of tones and colours in cells of the image; first moments have 1; -1: 0.3 with efficientnet-lite0,"
        " else 0",
        least=AUTO,
        most=1e6,
    )

    def named(self, channels: int) -> "Features":
        """The same with its network named, for images of so many channels."""
        auto = "efficientnet-lite0" if channels > 1 else "vgg"
        return replace(self, features=auto) if self.features == "auto" else self

    def filled(self, size: int, *, lite: bool, private: bool = False, labelled: bool = True) -> "Features":
        """The same with all that follows from others written down, for images of so many pixels a side.

        lite: whether an EfficientNet-Lite is matched; private: whether noise is added to what is matched, an entry
        each: then fewer are better; labelled: whether there are as many entries a label.
        """
        auto: dict[str, Any] = {
            "feature_scale": max(1, 64 // size) if lite else 1,
            "shift": 2 if lite else 0,
            "pool": (4 if labelled else 8) if lite else 8 if private else 0,
            "second_weight": 0.0 if lite or private else 0.05,
            "tone_weight": 0.3 if lite else 0.0,
        }
        open_ = {"feature_scale": self.feature_scale == 0} | {key: getattr(self, key) == AUTO for key in [*auto][1:]}
        return replace(self, **{key: value for key, value in auto.items() if open_[key]})


_FEW_IMAGES = 500  # a client, on average: of so few, more and smaller steps make clearer images
_SMALL_BATCH = {1: 16, 3: 32}  # for so few, by channels
_ROUND_IMAGES = {1: 1600, 3: 3200}  # that a client generates in a round, by channels
_WHOLE_RATE, _WHOLE_RATE_LITE = 300, 400  # steps up to which the rate is 1, the second with EfficientNet-Lite0
_LEAST_RATE = 0.05  # what longer runs come to
_FINAL_RATE, _CERTAINTY = 0.3, 0.95
_SOFT_RATE, _SOFT_FINAL_RATE, _SOFT_CERTAINTY = 0.15, 0.05, 0.25  # of soft masks
_ALONE = 4  # times as many steps a round where the server searches alone: it is one search instead of many


@dataclass(frozen=True)
class Search:
    """A client's local mask search."""

    mask: str = _setting(
        "binary",
        "what is searched: a binary mask, one bit a weight; or a soft one, which scales each weight by its"
        " keep-probability and ships it in four bits: nearer images, above all in colour, for more bytes",
        choices=("binary", "soft"),
    )
    local_steps: int = _setting(
        0,
        f"gradient steps a client and round; 0: as many as make {_ROUND_IMAGES[1]} images, of colour"
        f" {_ROUND_IMAGES[3]}",
        least=0,
        most=1_000_000,
    )
    batch_size: int = _setting(
        0,
        f"images a step, 2 at least; 0: 64, and where clients have fewer than {_FEW_IMAGES} images {_SMALL_BATCH[1]},"
        f" of colour {_SMALL_BATCH[3]}",
        least=0,
        most=65536,
    )
    learning_rate: float = _setting(
        0.0,
        f"Adam's step on the scores; 0: {_SOFT_RATE} of soft masks; of binary ones 1, in many rounds {_WHOLE_RATE} over"
        f" the steps of all of them where these are more, with efficientnet-lite0 {_WHOLE_RATE_LITE}",
        least=0.0,
        most=1000.0,
    )
    final_rate: float = _setting(
        float(AUTO),
        f"share of the learning rate left in the last round (cosine); -1: {_FINAL_RATE}, of soft masks"
        f" {_SOFT_FINAL_RATE}",
        least=AUTO,
        most=1.0,
    )
    beta1: float = _setting(
        0.0,
        "Adam's first decay; 0: 0.9 where its moments are kept between rounds, 0.5 where they are not",
        least=0.0,
        most=0.9999,
    )
    beta2: float = _setting(0.999, "Adam's second decay", least=0.0, most=0.999999)
    adam: str = _setting(
        "auto",
        "Adam's moments between rounds: reset, or kept on the client's disk; auto keeps them where all take part",
        choices=("auto", "reset", "keep"),
    )
    loss: str = _setting(
        "auto",
        "what a batch's moments are descended by: their squared distance, which favours images that are alike; the same"
        " over pairs of images alone (unbiased), which does not; or an Adam moving average of the residual; auto:"
        " unbiased with efficientnet-lite0, else squared",
        choices=("auto", "squared", "unbiased", "moving"),
    )
    moving_rate: float = _setting(
        0.1, "rate of the moving average, in root-mean-square residuals", above=0.0, most=10.0
    )
    shrinkage: float = _setting(
        0.0, "each move of θ in a round is made this much shorter; shorter ones are left out", least=0.0, most=0.5
    )
    stream: str = _setting(
        "own",
        "what a search draws masks with: numbers of its own, or shared by all of a round, for few votes (parts ≥ 4)",
        choices=("own", "shared"),
    )
    latents: str = _setting(
        "spread",
        "latents of a step's images: independent, or spread evenly (in opposite pairs of orthogonal directions)",
        choices=("spread", "independent"),
    )
    precision: str = _setting(
        "auto",
        "numbers that generator and feature network compute in while searching; auto: bfloat16 where it is fast",
        choices=("auto", "float32", "bfloat16"),
    )
    compile: str = _setting(
        "auto",
        "a step compiled by torch before it is recorded, on a GPU (other roundings); auto: where a run is long enough",
        choices=("auto", "on", "off"),
    )
    client_threads: int = _setting(
        0,
        "processor threads a search uses; 0: one a client, and up to four where the server searches alone",
        least=0,
        most=1024,
    )

    @property
    def threads(self) -> int:
        """Processor threads of a search, once preparation has said what 0 is."""
        return self.client_threads or 1

    @property
    def first_decay(self) -> float:
        """β₁ of Adam, once `adam` says whether it is kept."""
        return self.beta1 or (0.5 if self.adam == "reset" else 0.9)


@dataclass(frozen=True)
class Federation:
    """Rounds, and how the server makes one probability a weight of the masks."""

    mode: str = _setting(
        "masks",
        "what clients send: masks in every round; or one-shot, the moments of their images once, and the server "
        "searches alone",
        choices=("masks", "one-shot"),
    )
    rounds: int = _setting(20, "rounds", least=1, most=10_000_000)
    cohort: int = _setting(0, "clients a round; 0 takes all", least=0, most=32767)
    draws: str = _setting("stratified", "mask draws of a round's clients", choices=("stratified", "independent"))
    parts: int = _setting(
        0,
        "entries of the mask are dealt publicly into this many parts, a client sends one; 0: 2 from 8 clients a round",
        least=0,
        most=32767,
    )
    deal: str = _setting(
        "even",
        "how entries are dealt: all into as many parts, or by stages: smaller ones of the generator into fewer parts, "
        "the labels' weights into one (for the fewest bits)",
        choices=("even", "stages"),
    )
    control_variate: bool = _setting(False, "average differences to the mask without news")
    mada: str = _setting(
        "off",
        "moving average of θ: distance as published, coupled, a fixed share, or off (PRISM†)",
        choices=("published", "coupled", "fixed", "off"),
    )
    fixed_share: float = _setting(0.5, "share of the new average when mada is fixed", above=0.0, most=1.0)
    alpha: float = _setting(0.0, "PRISM-α: share of the last layers that send keep-probabilities", least=0.0, most=1.0)
    alpha_bits: int = _setting(8, "resolution of what the α layers send, bits", least=1, most=16)
    moment_steps: int = _setting(
        64,
        "one-shot: steps of sent moments to their root mean square; each halving takes a bit an entry off",
        least=1,
        most=4096,
    )
    client_weights: str = _setting("equal", "weight of a client in the average", choices=("equal", "size"))
    screen: float = _setting(
        0.0,
        "leave out a client whose mask is more than so many times as improbable as the cohort's median; 0 for none",
        least=0.0,
        most=1000.0,
    )
    initial_theta: float = _setting(0.5, "keep-probability before the first round", above=0.0, most=0.9999)
    initial_certainty: float = _setting(
        float(AUTO),
        "how far towards 1 or 0 an entry begins, by a public draw at that probability; 0: all begin alike; "
        f"-1: {_CERTAINTY}, of soft masks {_SOFT_CERTAINTY}",
        least=AUTO,
        most=1.0,
    )
    clip: float = _setting(0.01, "θ stays this far from 0 and 1", least=0.0001, most=0.49)
    shipped: str = _setting(
        "best",
        "mask of the finished model: one draw, θ ≥ 1/2, or the best of several draws by the matched moments",
        choices=("draw", "half", "best"),
    )
    shipped_draws: int = _setting(8, "draws compared when shipped is best", least=1, most=1000)

    @property
    def certainty(self) -> float:
        """How far entries begin towards 1 or 0; of soft masks preparation has said it."""
        return _CERTAINTY if self.initial_certainty == AUTO else self.initial_certainty


@dataclass(frozen=True)
class Privacy:
    """The guarantee of the whole run."""

    epsilon: float = _setting(0.0, "ε of the whole run; 0 gives no guarantee", least=0.0, most=100.0)
    delta: float = _setting(1e-5, "δ of the whole run, below 1 / images of any client", above=0.0, most=0.5)
    images_per_person: int = _setting(
        1, "most images that one person has at one client; noise grows with it", least=1, most=1_000_000
    )
    noise: str = _setting(
        "exact",
        "sampler of the noise: exact (OpenDP, safe against floating-point attacks) or fast (NumPy)",
        choices=("exact", "fast"),
    )
    mechanism: str = _setting(
        "release",
        "where noise is added: to one release of moments, or to θ in every round (the paper's, which drowns it)",
        choices=("release", "theta"),
    )
    another_release: bool = _setting(
        False, "release again what was released before under other settings; the ledger adds both up"
    )
    distances: bool = _setting(
        False, "measure distances to held-back images although they are outside the guarantee of ε"
    )


@dataclass(frozen=True)
class Output:
    """What a run writes and measures on the way; nothing here changes the model."""

    grid_every: int = _setting(5, "rounds between sample grids; 0 for none but the last", least=0)
    distance_every: int = _setting(0, "rounds between distances; 0 for the last only", least=0)
    distance_samples: int = _setting(10_000, "samples a distance is measured on; 0 for no distance", least=0)
    workers: int = _setting(0, "clients searched at a time; 0 takes one a core, and one on a GPU", least=0, most=1024)
    processes: str = _setting(
        "auto",
        "search in processes, one a worker, so that none waits for another's interpreter: on a processor, in runs that "
        "are long enough",
        choices=("auto", "on", "off"),
    )
    cache_dir: str = _setting("", "folder that keeps clients' moments between runs; none keeps them in the run folder")
    device: str = _setting("cpu", "torch device")
    report: bool = _setting(True, "let the command `train` build report.html at its end")


@dataclass(frozen=True)
class Deployment:
    """How a server deals with clients on other machines; nothing here is part of the agreement between them."""

    deadline: float = _setting(
        600.0, "seconds that a round waits for its clients; 0 waits for ever", least=0.0, most=1e7
    )
    least_cohort: int = _setting(1, "replies below which a round does not count", least=1, most=32767)
    attempts: int = _setting(3, "times that a round is tried before the run stops", least=1, most=1000)
    join_wait: float = _setting(
        600.0, "seconds that a server waits for clients before its first round; 0 waits for ever", least=0.0, most=1e7
    )


@dataclass(frozen=True)
class Settings:
    """All settings of a run, one section a dataclass, with the seed of everything public."""

    data: Data = field(default_factory=Data)
    generator: Generator = field(default_factory=Generator)
    features: Features = field(default_factory=Features)
    search: Search = field(default_factory=Search)
    federation: Federation = field(default_factory=Federation)
    privacy: Privacy = field(default_factory=Privacy)
    output: Output = field(default_factory=Output)
    deployment: Deployment = field(default_factory=Deployment)
    seed: int = _setting(0, "seed of everything public", least=0, most=2**64 - 1)

    def __post_init__(self) -> None:
        _checked("seed", _field("seed"), self.seed)
        for section, kind in SECTIONS.items():
            for item in fields(kind):
                _checked(f"{section}.{item.name}", item, getattr(getattr(self, section), item.name))
        _check_together(self)

    @property
    def pixels(self) -> int:
        """Pixels a side of the images."""
        return self.generator.size or (16 if self.data.dataset == "digits" else 32)

    @property
    def first_rate(self) -> float:
        """The learning rate before it falls."""
        if self.search.learning_rate:
            return self.search.learning_rate
        if self.search.mask == "soft":
            return _SOFT_RATE
        # A server alone has no masks of others to average: there large steps were better in long runs as well.
        steps = 1 if self.federation.mode == "one-shot" else self.federation.rounds * self.search.local_steps
        whole = _WHOLE_RATE_LITE if self.features.features == "efficientnet-lite0" else _WHOLE_RATE
        return max(_LEAST_RATE, min(1.0, whole / max(1, steps)))

    @property
    def alpha(self) -> float:
        """Share of the layers, the last ones, whose keep-probabilities travel; all of a soft mask's do."""
        return 1.0 if self.search.mask == "soft" and self.federation.mode != "one-shot" else self.federation.alpha

    @property
    def keeps_adam(self) -> bool:
        """Whether a client takes up Adam's moments where its last round left them.

        So does a server that searches alone.  `auto` does where that is the round before.  Of clients that are asked
        now and then, moments would be old, and a simulator of very many would keep as many times eight bytes a
        parameter.
        """
        always = self.federation.cohort in (0, self.data.clients)
        return always if self.search.adam == "auto" else self.search.adam == "keep"

    def sized(self, channels: int, images: float | None = None) -> "Settings":
        """The settings with width, batch, local steps and what a soft mask changes written down, for so many channels.

        images: how many a client has, on average; None where nobody knows.
        """
        width = self.generator.width or (16 if channels == 1 else 32)
        batch = self.search.batch_size or (
            _SMALL_BATCH[channels] if images is not None and images < _FEW_IMAGES else 64
        )
        generated = _ROUND_IMAGES[channels] * (_ALONE if self.federation.mode == "one-shot" else 1)
        steps = self.search.local_steps or max(1, generated // batch)
        soft, search, federation = self.search.mask == "soft", self.search, self.federation
        final = (_SOFT_FINAL_RATE if soft else _FINAL_RATE) if search.final_rate == AUTO else search.final_rate
        certainty = _SOFT_CERTAINTY if soft and federation.initial_certainty == AUTO else federation.certainty
        return replace(
            self,
            generator=replace(self.generator, width=width),
            search=replace(search, batch_size=batch, local_steps=steps, final_rate=final),
            federation=replace(federation, initial_certainty=certainty),
        )

    def public(self) -> "Settings":
        """The settings without paths and machines, which change nothing and are nobody's business.

        Raises SettingError while the clients of a pattern are not counted.  A feature network in a
        file is called `file`: its SHA-256 says which one it is.
        """
        name = self.features.features
        features = replace(self.features, features=name if name in FEATURE_NETS else "file", weights="")
        data = replace(self.data, data_dir="", clients_from="")
        return replace(self, data=data, features=features, output=Output(), deployment=Deployment())


SECTIONS: dict[str, type] = {
    "data": Data,
    "generator": Generator,
    "features": Features,
    "search": Search,
    "federation": Federation,
    "privacy": Privacy,
    "output": Output,
    "deployment": Deployment,
}


def all_fields() -> dict[str, tuple[str, "Field[Any]"]]:
    """Every setting by its name: (section, field); the seed's section is empty."""
    found = {item.name: (section, item) for section, kind in SECTIONS.items() for item in fields(kind)}
    found["seed"] = ("", next(item for item in fields(Settings) if item.name == "seed"))
    return found


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from a nested mapping as TOML gives it.

    Raises SettingError with key, value and allowed range for what is unknown, of the wrong
    type, or impossible.
    """
    parts: dict[str, Any] = {}
    for key, value in values.items():
        if key == "seed":
            parts[key] = _checked("seed", _field("seed"), value)
        elif key in SECTIONS and isinstance(value, Mapping):
            parts[key] = SECTIONS[key](**_section(key, _filled(value) if key == "data" else value))
        else:
            raise SettingError(f"key {key!r}", f"seed or a section: {', '.join(SECTIONS)}", "mend the settings")
    return Settings(**parts)


def known_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping without the settings that this version does not have: a model of another one is read by it."""
    names = {section: {item.name for item in fields(kind)} for section, kind in SECTIONS.items()}
    return {
        key: {name: one for name, one in value.items() if name in names[key]}
        if key in names and isinstance(value, Mapping)
        else value
        for key, value in values.items()
    }


def _filled(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is not set follows from clients_from or people; what is set and says otherwise is refused later."""
    if data.get("clients_from"):
        return {"dataset": "folder", "partition": "given", "clients": 0, **data}
    return {"partition": "iid", **data} if data.get("people") else data


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with flat changes laid over it (`{"rounds": 3}` → federation.rounds)."""
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    known = all_fields()
    for section in SECTIONS:
        if not isinstance(found.get(section, {}), dict):
            raise SettingError(f"key {section!r} = {found[section]!r}", "a table of settings", "mend the settings")
    for name, value in changes.items():
        if name not in known:
            raise SettingError(f"setting {name!r}", f"one of {', '.join(sorted(known))}", "mend the name")
        section = known[name][0]
        if section:
            found.setdefault(section, {})[name] = value
        else:
            found[name] = value
    return found


def load_settings(path: Path, changes: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a TOML file, with flat changes laid over it.  Raises SettingError."""
    return settings_from(merged(read_toml(path), changes or {}))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as nested mappings.  Raises SettingError when it is missing or damaged."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"cannot read {path} ({error})", "a TOML file", "check the path and its text") from None


def toml_from(text: str) -> dict[str, Any]:
    """TOML as nested mappings.  Raises SettingError when it is damaged."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"settings that do not read ({error})", "TOML", "mend their text") from None


def to_toml(settings: Settings) -> str:
    """The settings as TOML that `load_settings` reads back to an equal value."""
    lines = [f"seed = {settings.seed}"]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in asdict(getattr(settings, section)).items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)


def _field(name: str) -> "Field[Any]":
    return all_fields()[name][1]


def _section(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    known = {item.name: item for item in fields(SECTIONS[section])}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SettingError(
            f"key {section}.{unknown[0]} = {values[unknown[0]]!r}",
            f"one of {', '.join(known)}",
            "mend or remove the key",
        )
    return {key: _checked(f"{section}.{key}", known[key], value) for key, value in values.items()}


def _checked(key: str, item: "Field[Any]", value: Any) -> Any:
    kind: Any = item.type
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind == tuple[int, ...] and isinstance(value, list | tuple):
        return tuple(_in_range(key, item, one, int) for one in value)
    return _in_range(key, item, value, kind)


def _in_range(key: str, item: "Field[Any]", value: Any, kind: Any) -> Any:
    limits = item.metadata
    right_type = type(value) in _types(kind)
    if right_type and kind is float and value != value:
        right_type = False
    if kind is str and right_type:
        right_type = value == value.encode("utf-8", "ignore").decode()
    if not right_type or not _allowed(value, limits):
        raise SettingError(f"{key} = {value!r}", _range_text(kind, limits), f"change {key}")
    return value


def _types(kind: Any) -> tuple[type, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _allowed(value: Any, limits: Mapping[str, Any]) -> bool:
    if limits["choices"] is not None and value not in limits["choices"]:
        return False
    if limits["least"] is not None and value < limits["least"]:
        return False
    if limits["above"] is not None and value <= limits["above"]:
        return False
    return limits["most"] is None or value <= limits["most"]


def _range_text(kind: Any, limits: Mapping[str, Any]) -> str:
    if limits["choices"] is not None:
        return "one of " + ", ".join(str(choice) for choice in limits["choices"])
    names = {int: "a whole number", float: "a number", str: "UTF-8 text", bool: "true or false"}
    name = names.get(kind, "whole numbers")
    low = f"≥ {limits['least']}" if limits["least"] is not None else ""
    low = f"> {limits['above']}" if limits["above"] is not None else low
    high = f"≤ {limits['most']}" if limits["most"] is not None else ""
    return " ".join((name, " and ".join(part for part in (low, high) if part))).strip()


def _check_together(settings: Settings) -> None:
    """Settings that are fine alone and impossible together."""
    data, federation = settings.data, settings.federation
    _check_open(settings)
    if settings.search.batch_size == 1:
        raise SettingError("search.batch_size = 1", "0, or at least 2", "change search.batch_size")
    _check_clients_from(data)
    _check_people(data)
    if data.partition == "shards" and data.shards % data.clients:
        raise SettingError(
            f"data.shards = {data.shards} with data.clients = {data.clients}",
            "a multiple of the clients",
            "change data.shards",
        )
    if federation.cohort > data.clients > 0:
        raise SettingError(
            f"federation.cohort = {federation.cohort}", f"0 … {data.clients}, the clients", "change federation.cohort"
        )
    if federation.cohort == 0 and data.clients > 32767:
        raise SettingError(
            f"federation.cohort = 0 with {data.clients} clients", "a cohort of at most 32767", "set federation.cohort"
        )
    most = federation.cohort or data.clients
    if settings.deployment.least_cohort > most > 0:
        raise SettingError(
            f"deployment.least_cohort = {settings.deployment.least_cohort}",
            f"1 … {most}, the clients of a round",
            "change deployment.least_cohort",
        )
    if federation.initial_theta < federation.clip or federation.initial_theta > 1 - federation.clip:
        raise SettingError(
            f"federation.initial_theta = {federation.initial_theta}",
            f"{federation.clip} … {1 - federation.clip}, the clip range",
            "change one of the two",
        )
    if federation.control_variate and federation.client_weights == "size":
        raise SettingError(
            "federation.control_variate with client_weights = 'size'",
            "clients of equal weight: the average travels less their unweighted masks",
            "change one of the two",
        )
    if federation.mode == "one-shot":
        _check_one_shot(settings)
    if settings.search.mask == "soft":
        _check_soft(settings)
    if settings.privacy.epsilon and settings.privacy.mechanism == "theta" and federation.shipped == "best":
        raise SettingError(
            "federation.shipped = 'best' with privacy.mechanism = 'theta'",
            "draw or half: clients would send distances from moments that no noise protects",
            "change federation.shipped",
        )


def _check_open(settings: Settings) -> None:
    """These are at least 0; only what stands for another rule is below it."""
    keys = ("features.second_weight", "features.tone_weight", "search.final_rate", "federation.initial_certainty")
    for key in keys:
        section, name = key.split(".")
        if AUTO < (value := getattr(getattr(settings, section), name)) < 0:
            raise SettingError(f"{key} = {value}", f"a number ≥ 0, or {AUTO}", f"change {key}")


def _check_soft(settings: Settings) -> None:
    """Soft masks travel as keep-probabilities, all of them, and nothing is drawn."""
    federation = settings.federation
    wanted = (
        ("federation.alpha", federation.alpha or 1.0, 1.0),
        ("federation.control_variate", federation.control_variate, False),
        ("federation.screen", federation.screen, 0.0),
        ("privacy.mechanism", settings.privacy.mechanism, "release"),
    )
    _check_fitting(wanted, "search.mask = 'soft'", "all weights send keep-probabilities, no masks")


def _check_fitting(wanted: Sequence[tuple[str, Any, Any]], choice: str, why: str) -> None:
    """Raises SettingError where a key's value is not the one that fits a choice made elsewhere."""
    for key, value, fitting in wanted:
        if value != fitting:
            raise SettingError(f"{key} = {value!r} with {choice}", f"{fitting!r}: {why}", "leave one of the two out")


def _check_one_shot(settings: Settings) -> None:
    """Where the server searches alone there is nothing to average, and every client is asked once."""
    federation = settings.federation
    if federation.cohort not in (0, settings.data.clients):
        raise SettingError(
            f"federation.cohort = {federation.cohort} with mode = 'one-shot'", "0: all are asked once", "leave it out"
        )
    wanted = (
        ("federation.mada", federation.mada, "off"),
        ("federation.alpha", federation.alpha, 0.0),
        ("federation.control_variate", federation.control_variate, False),
        ("privacy.mechanism", settings.privacy.mechanism, "release"),
    )
    _check_fitting(
        wanted, "federation.mode = 'one-shot'", "clients send moments, no masks, and the server searches alone"
    )


def _check_clients_from(data: Data) -> None:
    """A pattern names clients as given, in folders of their own; nobody else may leave their number open."""
    if not data.clients_from:
        if data.clients == 0:
            raise SettingError("data.clients = 0", "a whole number ≥ 1 and ≤ 1000000", "change data.clients")
        return
    wanted = {"dataset": "folder", "partition": "given", "data_dir": ""}
    for key, value in wanted.items():
        if getattr(data, key) != value:
            raise SettingError(
                f"data.{key} = {getattr(data, key)!r} with data.clients_from",
                f"{value!r}: its folders are the clients",
                f"leave data.{key} or data.clients_from out",
            )


def _check_people(data: Data) -> None:
    """Names of files are a folder's, and only parts that do not look at labels can keep persons whole."""
    if not data.people:
        return
    check_pattern(data.people)
    if data.dataset != "folder":
        raise SettingError(
            f"data.people with data.dataset = {data.dataset!r}", "'folder': its files have names", "leave it out"
        )
    if data.partition not in ("iid", "given"):
        raise SettingError(
            f"data.partition = {data.partition!r} with data.people",
            "iid, which deals whole persons, or given",
            "pass --partition iid",
        )


def check_pattern(people: str) -> None:
    """Raises SettingError for a pattern that is none, or that has more than one group to tell a person by."""
    try:
        groups = re.compile(people).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise SettingError(f"data.people = {people!r} ({error})", "a regular expression", "mend --people") from None
    if groups > 1:
        raise SettingError(f"data.people = {people!r} with {groups} groups", "one at most", "write others as (?:…)")
