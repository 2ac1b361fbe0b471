"""Every setting of a run, frozen and validated: what may be asked for.

A field's metadata says what it means and what it may be; the command line and the documentation are made from it.  What
stands for "follows from the rest" (`auto`, 0 or -1) is filled in by `prismfl.settings.resolve`.
"""

import os
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from prismfl.settings.check import Dealt, Section, check_together, checked, dealt_from, is_table, setting

AUTO = -1  # what a setting says that is to follow from others, where 0 says something

# Feature networks with a name of their own; any other is a file.
FEATURE_NETS = ("auto", "efficientnet-lite0", "vgg", "vgg19", "random")


@dataclass(frozen=True)
class Data(Section):
    """Which images, and how they are spread over the clients."""

    dataset: str = setting(
        "digits",
        "data set; folder takes any image folder or zip, hf what Hugging Face's datasets opens, "
        "arrays marks a run on a caller's arrays",
        choices=("digits", "mnist", "fmnist", "kmnist", "cifar10", "celeba", "folder", "hf", "arrays"),
    )
    data_dir: str = setting(
        "",
        "folder (or zip) that holds the data set; or with a *, as 'sites/*', one image folder or zip a client; with hf,"
        " or the data set's name",
        path=True,
    )
    people: str = setting(
        "",
        "whose image each file of a folder is: a pattern in its name, as 'person([0-9]+)', or a table of files and"
        " persons (.csv); none: people.csv in the folder says it, or of DICOM files their PatientID",
    )
    fit: str = setting(
        "crop",
        "what is made of images that are not square: their middle, the whole between black bars, or the whole squashed",
        choices=("crop", "pad", "squash"),
        quiet=True,
    )
    slices: str = setting(
        "axial",
        "slices of medical volumes that are images: axial, coronal or sagittal ones, with /4 every fourth;"
        " of DICOM series and frames every so many",
        quiet=True,
    )
    window: str = setting(
        "", "grey window of medical images, centre and width, as '40,400'; none: the file's own, or all", quiet=True
    )
    attribute: str = setting(
        "",
        "what the label is: celeba's attribute, Male where nothing is said; hf's column, label where nothing is said;"
        " of a folder none where its folders are no classes",
    )
    classes: str = setting("", "classes to keep: names, numbers from 0 and ranges (0-4,7); none keeps all")
    clients: int = setting(
        10, "number of clients; 0, where data_dir has a *, takes as many as it finds", least=0, most=1_000_000
    )
    partition: str = setting(
        "shards",
        "how images are spread: iid; shards, label-sorted, four a client, or shards:2 as many as it says; dirichlet, of"
        " concentration 0.005, or dirichlet:0.1 of that; attribute, each client one label; given, one top folder a"
        " client",
    )

    @property
    def dealt(self) -> "Dealt":
        """How images are spread, and what the word is followed by."""
        return dealt_from(self.partition)

    @property
    def pattern(self) -> str:
        """What each client's own folder or zip matches; empty where all images lie in one place."""
        return self.data_dir if "*" in self.data_dir else ""

    @property
    def place(self) -> str:
        """Where all images lie; empty where each client has its own, and where none was named."""
        return "" if self.pattern else self.data_dir


@dataclass(frozen=True)
class Generator(Section):
    """The frozen random network whose mask is searched."""

    size: int = setting(0, "pixels a side; 0 takes 16 for digits, else 32", choices=(0, 16, 32, 64))
    channels: int = setting(
        0,
        "1 for grey images, 3 for colour; 0: as the data set has them, and of a folder or hf as the images are, with"
        " epsilon colour",
        choices=(0, 1, 3),
    )
    width: int = setting(0, "channels of the last block; 0 takes 16 for grey images, 32 for colour", least=0, most=1024)
    conditional: bool = setting(
        True, "make images by label and match each label's moments, where images have labels (2 … 1000 of them)"
    )


@dataclass(frozen=True)
class Features(Section):
    """The frozen feature network that training matches."""

    features: str = setting(
        "auto",
        "feature network to match: efficientnet-lite0 (ImageNet), vgg (embedded, small), vgg19:FILE with torchvision's"
        " weights, random (never trained), or a file of `prismfl pretrain`; auto: efficientnet-lite0 for colour, vgg"
        " for grey",
        path=True,
    )

    @property
    def network(self) -> str:
        """The network by its name, whatever file holds its weights; `file` for one that a file describes."""
        name = self.features.partition(":")[0]
        return name if name in FEATURE_NETS else "file"

    @property
    def weights(self) -> str:
        """The file of its weights, empty where none is named."""
        name, _, file = self.features.partition(":")
        return os.path.expanduser(file) if name in FEATURE_NETS else self.features  # noqa: PTH111 - as in a shell


@dataclass(frozen=True)
class Search(Section):
    """A client's local mask search."""

    mask: str = setting(
        "binary",
        "what is searched: a binary mask, one bit a weight; or a soft one, which scales each weight by its"
        " keep-probability and ships it in four bits: nearer images, above all in colour, for more bytes",
        choices=("binary", "soft"),
    )
    local_steps: int = setting(
        0, "gradient steps a client and round; 0: as many as make 1600 images, of colour 3200", least=0, most=1_000_000
    )
    batch_size: int = setting(
        0,
        "images a step, 2 at least; 0: 64, and where clients have fewer than 500 images 16, of colour 32",
        least=0,
        most=65536,
    )
    learning_rate: float = setting(
        0.0, "Adam's step on the scores; 0: 1, in runs of many steps less, of soft masks 0.15", least=0.0, most=1000.0
    )
    final_rate: float = setting(
        float(AUTO),
        "share of the learning rate left in the last round (cosine); -1: 0.3, of soft masks 0.05",
        least=AUTO,
        most=1.0,
    )
    loss: str = setting(
        "auto",
        "what a batch's moments are descended by: their squared distance, which favours images that are alike; the same"
        " over pairs of images alone (unbiased), which does not; or an Adam moving average of the residual; auto:"
        " unbiased with efficientnet-lite0, else squared",
        choices=("auto", "squared", "unbiased", "moving"),
    )
    ensemble: int = setting(
        1,
        "masks of the finished model, where the server searches alone: each is searched for what the others miss, in"
        " its part of the rounds, and images take turns among them; in long runs the last of one every thousand steps",
        least=1,
        most=64,
    )


@dataclass(frozen=True)
class Federation(Section):
    """Rounds, and how the server makes one probability a weight of the masks."""

    mode: str = setting(
        "masks",
        "what clients send: masks in every round; or one-shot, the moments of their images once, and the server "
        "searches alone",
        choices=("masks", "one-shot"),
    )
    rounds: int = setting(20, "rounds", least=1, most=10_000_000)
    cohort: int = setting(0, "clients a round; 0 takes all", least=0, most=32767)
    uplink: str = setting(
        "auto",
        "how much of its mask a client sends: the whole, half of its entries, or the fewest bits (a tenth of the large"
        " layers, averaged as differences); auto: half from 8 clients a round",
        choices=("auto", "whole", "half", "fewest"),
    )
    draws: str = setting("stratified", "mask draws of a round's clients", choices=("stratified", "independent"))
    mada: str = setting(
        "off",
        "mask-aware dynamic moving average of θ: by distance as published, or off (PRISM†)",
        choices=("published", "off"),
    )
    alpha: float = setting(0.0, "PRISM-α: share of the last layers that send keep-probabilities", least=0.0, most=1.0)
    client_weights: str = setting("equal", "weight of a client in the average", choices=("equal", "size"))
    screen: float = setting(
        float(AUTO),
        "leave out a client whose mask is more than so many times as improbable as the cohort's median; 0 for none; "
        "-1: 3 from 4 clients a round; none where the server sees sums of masks alone, or θ begins near 1/2",
        least=AUTO,
        most=1000.0,
    )
    initial_certainty: float = setting(
        float(AUTO),
        "how far from 1/2 towards 1 or 0 an entry begins, by a public draw; 0: all begin at 1/2, as published; "
        "-1: 0.95, of soft masks 0.25",
        least=AUTO,
        most=1.0,
    )
    finished_mask: str = setting(
        "best",
        "mask of the finished model: one draw, θ ≥ 1/2, or the best of several draws by the matched moments",
        choices=("draw", "half", "best"),
    )
    secure_sum: bool = setting(
        False,
        "the server sees sums alone: with epsilon one release of all clients together, each with a share of its"
        " noise; without, counts of masks, for some log2(clients of a part + 1) bits a weight sent, not a tenth of one",
        quiet=True,
    )

    @property
    def by_differences(self) -> bool:
        """Whether the server averages differences to the mask without news: what few bits are best read as."""
        return self.uplink == "fewest"

    @property
    def clip(self) -> float:
        """How far θ stays from 0 and 1."""
        return 0.04 if self.uplink == "fewest" else 0.01

    @property
    def certainty(self) -> float:
        """How far entries begin towards 1 or 0; of soft masks it has been filled in."""
        return 0.95 if self.initial_certainty == AUTO else self.initial_certainty


@dataclass(frozen=True)
class Privacy(Section):
    """The guarantee of the whole run."""

    epsilon: float = setting(0.0, "ε of the whole run; 0 gives no guarantee", least=0.0, most=100.0)
    delta: float = setting(1e-5, "δ of the whole run, below 1 / images of any client", above=0.0, most=0.5)
    images_per_person: int = setting(
        1, "most images that one person has at one client; noise grows with it", least=1, most=1_000_000
    )
    noise: str = setting(
        "exact",
        "sampler of the noise: exact (OpenDP, safe against floating-point attacks) or fast (NumPy)",
        choices=("exact", "fast"),
    )
    distances: bool = setting(
        False, "measure distances to held-back images although they are outside the guarantee of ε"
    )


@dataclass(frozen=True)
class Running(Section):
    """How a machine goes about a run: nothing here is agreed on, and a resumed run may change it.

    `precision` and `client_threads` round differently, all else leaves the model as it is.
    """

    device: str = setting("cpu", "torch device")
    workers: int = setting(0, "clients searched at a time; 0 takes one a core, and a few on a GPU", least=0, most=1024)
    client_threads: int = setting(
        0,
        "processor threads a search uses; 0: one a client; where the server searches alone half the cores, 4 at most",
        least=0,
        most=1024,
    )
    precision: str = setting(
        "auto",
        "numbers that generator and feature network compute in while searching; auto: bfloat16 where it is fast",
        choices=("auto", "float32", "bfloat16"),
    )
    cache_dir: str = setting(
        "", "folder that keeps clients' moments between runs; none keeps them in the run folder", path=True
    )
    budget_epsilon: float = setting(
        0.0,
        "most ε, told at the run's δ, that the data may ever spend over all runs; 0 sets no limit, and the ledger says"
        " the sum",
        least=0.0,
    )
    distance_every: int = setting(0, "rounds between distances; 0 for the last only", least=0)
    distance_samples: int = setting(10_000, "samples a distance is measured on; 0 for no distance", least=0)
    deadline: float = setting(
        600.0,
        "seconds that a server waits for its clients, before the first round and in each; 0 waits for ever",
        least=0.0,
        most=1e7,
    )
    least_cohort: int = setting(1, "replies below which a server's round does not count", least=1, most=32767)

    @property
    def threads(self) -> int:
        """Processor threads of a search, once they have been filled in."""
        return self.client_threads or 1


@dataclass(frozen=True)
class Settings:
    """All settings of a run, one section a dataclass, with the seed of everything public.

    Every value is checked; what stands for "follows from the rest" (`auto`, 0 or -1) stays as it is until
    `prismfl.settings.resolve.resolved` fills it in.

    Attributes:
        data: which images, and how they are spread over the clients.
        generator: the frozen random network.
        features: the frozen feature network that training matches.
        search: a client's local mask search.
        federation: rounds, and how the server makes θ of the masks.
        privacy: (ε, δ) of a run; ε = 0 gives no guarantee.
        running: how this machine goes about the run.
        seed: of all public randomness, 0 … 2^64 - 1.

    Raises:
        SettingError: for a value outside its range, and for values that are impossible together.

    Examples:
        >>> settings = Settings(federation=Federation(rounds=3), seed=7)
        >>> settings.federation.rounds, settings.data.clients, settings.pixels
        (3, 10, 16)
    """

    data: Data = field(default_factory=Data)
    generator: Generator = field(default_factory=Generator)
    features: Features = field(default_factory=Features)
    search: Search = field(default_factory=Search)
    federation: Federation = field(default_factory=Federation)
    privacy: Privacy = field(default_factory=Privacy)
    running: Running = field(default_factory=Running)
    seed: int = setting(0, "seed of everything public", least=0, most=2**64 - 1)

    def __post_init__(self) -> None:
        checked("seed", all_fields()["seed"][1], self.seed)
        check_together(self)

    @property
    def pixels(self) -> int:
        """Pixels a side of the images."""
        return self.generator.size or (16 if self.data.dataset == "digits" else 32)

    @property
    def channels(self) -> int:
        """Channels that images are brought to, 0 for those they have; with ε no image may decide that."""
        open_to_images = self.data.dataset in ("folder", "hf") and not self.generator.channels
        return 3 if self.privacy.epsilon and open_to_images else self.generator.channels

    @property
    def alpha(self) -> float:
        """Share of the layers, the last ones, whose keep-probabilities travel; all of a soft mask's do."""
        return 1.0 if self.search.mask == "soft" and self.federation.mode != "one-shot" else self.federation.alpha

    @property
    def keeps_adam(self) -> bool:
        """Whether a client takes up Adam's moments where its last round left them: where that is the round before.

        So does a server that searches alone.  Of clients that are asked now and then, moments would be old, and a
        simulator of very many would keep as many times eight bytes a parameter.
        """
        return self.federation.cohort in (0, self.data.clients)

    def public(self) -> "Settings":
        """The settings without paths and machines, which change nothing and are nobody's business.

        Returns:
            Settings that all parties of a run have in common.  A feature network in a file is called `file`:
            its SHA-256 says which one it is.  A table of persons is `people.csv`.

        Raises:
            SettingError: while the clients of a pattern are not counted.
        """
        people = "people.csv" if is_table(self.data.people) else self.data.people
        features, data = Features(self.features.network), replace(self.data, data_dir="", people=people)
        return replace(self, data=data, features=features, running=Running())


SECTIONS: dict[str, type] = {
    kind.__name__.lower(): kind for kind in (Data, Generator, Features, Search, Federation, Privacy, Running)
}


def all_fields() -> dict[str, tuple[str, "Field[Any]"]]:
    """Every setting by its name: (section, field); the seed's section is empty."""
    found = {item.name: (section, item) for section, kind in SECTIONS.items() for item in fields(kind)}
    return found | {"seed": ("", Settings.__dataclass_fields__["seed"])}
