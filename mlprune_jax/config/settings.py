"""The settings of a run, as written in a config file; every default is stated in this room and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mlprune_jax.config.distillation import Distillation
from mlprune_jax.config.geometry import DropoutRate, Frozen, Integer, ModelConfig, Real
from mlprune_jax.config.task import TaskSettings
from mlprune_jax.config.values import Block, Count, Density, Fraction, Rate


class TrainSettings(Frozen):
    """How one stage trains.

    Attributes:
        epochs: passes over the training set, fractions allowed; of a pruning stage, those that learn what to prune and
            those that recover (``recover``) together.
        batch_size: examples of a step (of SQuAD, windows), over all devices together.
        accumulate: parts in which a batch passes through the device, one after the other, for less memory. Terms that
            average over tokens average over each part's, then over the parts.
        learning_rate: highest learning rate of the weights (AdamW).
        warmup: share of the steps over which learning rates rise linearly; they then fall linearly to 0.
        weight_decay: AdamW's decay of matrices; biases, layer norms, scores and thresholds do not decay.
        adam_epsilon: Adam's epsilon, for weights, scores and thresholds alike.
        max_grad_norm: greatest global norm of the gradients; longer ones are scaled down to it.
        dropout: rate of dropout of hidden states and attention while this stage trains, recovery included; null: the
            model's own rates.
    """

    epochs: Annotated[Real, Field(gt=0, le=1e6)] = 3.0
    batch_size: Count = 32
    accumulate: Count = 1
    learning_rate: Rate = 3e-5
    warmup: Fraction = 0.05
    weight_decay: Rate = 0.0
    adam_epsilon: Annotated[Real, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[Real, Field(gt=0)] = 1.0
    dropout: DropoutRate | None = None

    @model_validator(mode="after")
    def _parts_are_even(self) -> TrainSettings:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}")
        return self


class DenseStage(TrainSettings):
    """Dense fine-tuning, without a teacher; its result is the teacher of the next stage.

    Attributes:
        enabled: whether it runs; false where ``model`` is a fine-tuned model already.
    """

    enabled: bool = True


# What a stage with thresholds has where a soft one has the defaults below: scores and penalty as published.
OF_THRESHOLDS = {"score_init": "constant", "score_scale": 0, "two_sided": False, "max_strength": 20000, "clip": "all"}
FLAT = 15.0  # above this, what is left of the sigmoid's slope is lost in float32
THRESHOLDS_ALONE = ("threshold_learning_rate", "threshold_start", "threshold_gradient")


class PruneStage(TrainSettings):
    """What head/row and block pruning have in common.

    The defaults are what measured best with MiniLM: soft densities on STS-B and QQP, their start on STS-B
    (docs/results.md). With ``densities`` learned or equal, five default to what was published, as `OF_THRESHOLDS` says.
    The target of ``ramp``, the penalty and the cut is the stage's ``density``.

    Attributes:
        enabled: whether the stage runs.
        density: kept fraction of the DENSE encoder's parameters, by count, after this stage; null: ``prune.density`` in
            the last stage; of heads and rows before blocks a half, or ``prune.density`` where that is more.
        start_from: where the student's weights come from: "pretrained" is ``model``, "dense" the dense stage's result,
            else a folder or hub id; null: the stage before.
        teacher: whom the student is compared with, named likewise; null: the stage before.
        score_learning_rate: highest learning rate of the scores (Adam, which moves a score by about this much a step).
        threshold_learning_rate: the same of the thresholds; with soft densities there are none.
        score_init: what scores start from. "fisher": the order of what losing a unit costs the loss, measured on 32
            batches; "constant": all equal; "uniform": drawn from -score_scale .. score_scale; "kaiming_uniform": drawn
            from -1 .. 1; "magnitude": the mean absolute weight of each unit. Soft densities take "fisher" or
            "constant".
        score_scale: how high scores start. "constant": at it. "fisher" with soft densities: spaced evenly over half to
            one and a half of it, in one order of all units, by what a parameter is worth; else over -score_scale ..
            score_scale in each group.
        threshold_start: logit of the kept fraction that thresholds start at; 5 keeps 99.3 %, 10 everything.
        temperature: what thresholds are divided by before the sigmoid (LEAP's; 1 is MLPruning), and with soft densities
            the scores in the penalty's gradient.
        threshold_gradient: how the loss moves a threshold. "sum": as if all kept units grew together; "boundary": by
            what keeping one unit more would do.
        densities: what decides how many units stay. "soft": what scores above 0 stays, and the penalty acts on the
            scores; "learned": each group learns a threshold; "equal": every group keeps the same share.
        clip: whose gradients ``max_grad_norm`` holds. "weights": those of the weights alone, so that a strong penalty
            does not shrink their step; "all": those of all in one norm, the penalty's part included.
        max_strength: the penalty is strength * (density - target)^2, and this the strength where everything is kept. It
            falls with the square itself, as max_strength * ((density - target) / (first density - target))^2.
        min_strength: least strength while the square is at least ``weak_below``.
        weak_strength: strength while the square is below ``weak_below``.
        weak_below: square of density - target, no unit, below which ``weak_strength`` holds; 3e-4 is a distance of 1.7
            points.
        two_sided: also pull a density below the target back up.
        ramp: shares of the learning steps between which the target falls, along a cubic, from the density that the
            stage starts with to its own; null: it is its own from the first step.
        steer_by_count: true: the penalty's density is the exact count; false: R, the expected kept weights.
        final_cut: true: what was learned is cut to a count not above the target; false: what scores or thresholds left
            stays, near the target.
        recover: share of the epochs that comes after the cut and trains what is left, under a schedule of its own.
        short_schedule: what happens where thresholds or soft scores cannot arrive in the steps there are. "mend":
            their learning rate is raised, and the log says so; "refuse": stop before training; "allow": train all the
            same. A ``score_learning_rate`` of 0 stays: the final cut then takes scores as they began.
        freeze_embeddings: keep the embeddings as they are while this stage trains.
    """

    enabled: bool = True
    density: Density | None = None
    start_from: str | None = None
    teacher: str | None = None
    score_learning_rate: Rate = 1e-2
    threshold_learning_rate: Rate = 1e-1
    score_init: Literal["fisher", "constant", "uniform", "kaiming_uniform", "magnitude"] = "fisher"
    score_scale: Rate = 0.3
    threshold_start: Real = 5.0
    temperature: Annotated[Real, Field(gt=0)] = 1.0
    threshold_gradient: Literal["sum", "boundary"] = "sum"
    densities: Literal["soft", "learned", "equal"] = "soft"
    clip: Literal["all", "weights"] = "weights"
    max_strength: Rate = 2000.0
    min_strength: Rate = 1000.0
    weak_strength: Rate = 1000.0
    weak_below: Rate = 3e-4
    two_sided: bool = True
    ramp: tuple[Fraction, Fraction] | None = (0.0, 0.6)
    steer_by_count: bool = True
    final_cut: bool = True
    recover: Annotated[Real, Field(ge=0, lt=1)] = 0.35
    short_schedule: Literal["mend", "refuse", "allow"] = "mend"
    freeze_embeddings: bool = True

    @model_validator(mode="before")
    @classmethod
    def _thresholds_as_published(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("densities") in ("learned", "equal"):
            return {**OF_THRESHOLDS, **data}
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> PruneStage:
        if self.densities == "soft" and not self.steer_by_count:
            raise ValueError("densities soft is steered by the count: R does not see which scores are above 0")
        if self.densities == "soft" and not (self.score_init in ("constant", "fisher") and self.score_scale > 0):
            raise ValueError(
                "densities soft keeps what scores above 0, so all scores must start there: score_init constant or "
                f"fisher and a score_scale above 0, got {self.score_init} and {self.score_scale:g}; "
                "densities learned and equal take any"
            )
        idle = [name for name in THRESHOLDS_ALONE if getattr(self, name) != type(self).model_fields[name].default]
        if self.densities == "soft" and idle:
            raise ValueError(f"densities soft has no thresholds: {', '.join(idle)} would do nothing")
        if self.score_init in ("fisher", "uniform") and self.score_scale == 0:
            raise ValueError(
                f"score_init {self.score_init} spreads scores over -score_scale .. score_scale: a score_scale above 0"
            )
        start = self.highest_score if self.densities == "soft" else self.threshold_start
        if start > FLAT * self.temperature:
            raise ValueError(
                f"at temperature {self.temperature:g} the sigmoid is flat where training starts, at {start:g}, and the "
                f"penalty would move nothing: temperature must be {start / FLAT:.2g} at least"
            )
        if self.ramp is not None and self.ramp[0] > self.ramp[1]:
            raise ValueError(f"ramp {list(self.ramp)} ends before it begins")
        return self

    @property
    def mixes_methods(self) -> bool:
        """Whether thresholds learn under all that is a default of soft densities alone."""
        soft = {name: type(self).model_fields[name].default for name in OF_THRESHOLDS}
        return self.densities != "soft" and all(getattr(self, name) == value for name, value in soft.items())

    @property
    def highest_score(self) -> float:
        """What a soft score has to fall by at most before it is below 0."""
        return self.fisher_range[1] if self.score_init == "fisher" else self.score_scale

    @property
    def fisher_range(self) -> tuple[float, float]:
        """Lowest and highest score that ``score_init: fisher`` gives."""
        if self.densities == "soft":
            return self.score_scale / 2, self.score_scale * 3 / 2
        return -self.score_scale, self.score_scale


class HeadRowStage(PruneStage):
    """Step 1: heads and rows, which are cut out.

    Attributes:
        multiple_of: without blocks to follow, round what each layer keeps up to a multiple of it, within the density.
    """

    multiple_of: Count = 1


class BlockStage(PruneStage):
    """Step 2: tiles of weights, which are zeroed.

    Attributes:
        max_strength: as of heads and rows; at the default it is ``min_strength``, so that the strength is constant.
        shape: inputs x outputs of a tile in weights, as "32x32" or [32, 32]; each divides the matrices' sides.
    """

    max_strength: Rate = 1000.0  # as weak as in the measured runs (docs/results.md)
    shape: Block = (32, 32)


class Prune(Frozen):
    """What to prune and how far.

    Attributes:
        density: kept fraction of the dense encoder's parameters, by count, biases and layer norms included, after the
            last stage.
        heads_rows: step 1, heads and rows.
        blocks: step 2, blocks of what step 1 left.
    """

    density: Density = 0.2
    heads_rows: HeadRowStage = HeadRowStage()
    blocks: BlockStage = BlockStage()

    @model_validator(mode="after")
    def _densities_fall(self) -> Prune:
        first, last = self.heads_rows, self.blocks
        name, final = ("blocks", last) if last.enabled else ("heads_rows", first)
        if final.enabled and final.density is not None and final.density != self.density:
            raise ValueError(f"{name}.density {final.density} contradicts density {self.density}: set density alone")
        if first.enabled and last.enabled and first.density is not None and first.density < self.density:
            raise ValueError(f"heads_rows.density {first.density} lies below the final density {self.density}")
        return self

    @model_validator(mode="after")
    def _tiles_round_alone(self) -> Prune:
        if self.heads_rows.multiple_of > 1 and self.heads_rows.enabled and self.blocks.enabled:
            raise ValueError("heads_rows.multiple_of is for heads and rows alone: blocks round to their own shape")
        return self

    @property
    def head_row_tiles(self) -> tuple[int, int] | None:
        """The tiles that have to fit what heads and rows leave; ``None`` where any size will do."""
        side = self.heads_rows.multiple_of
        alone = (side, side) if side > 1 else None
        return self.blocks.shape if self.blocks.enabled else alone

    @property
    def head_row_density(self) -> float:
        """Density after step 1: its own, else max(0.5, density), or the whole way where no blocks follow."""
        if self.heads_rows.density is not None:
            return self.heads_rows.density
        return max(0.5, self.density) if self.blocks.enabled else self.density


class RunConfig(TaskSettings):
    """A whole run: model, data, stages.

    Attributes:
        model: folder or hub id of a BERT, RoBERTa, DistilBERT or ELECTRA; "demo" is a tiny fresh one of ``geometry``
            with a generated vocabulary.
        data: folder of the data, or a data set's hub id; "hub" fetches GLUE and SQuAD; "demo" is generated, with the
            model.
        seed: of all that is drawn: fresh weights, batches, dropout, scores, variants.
        compute_dtype: of products and activations, "float32" or "bfloat16"; parameters and sums stay float32.
        eval_batch_size: examples of a step of evaluation, and of a teacher that answers once for the whole training
            set.
        fsdp: devices over which parameters and optimiser state are split, for training states that do not fit on one;
            the batch is split over all devices in any case.
        rematerialize: compute each layer's activations again in the backward pass instead of keeping them.
        deterministic: forbid GPU operations whose sums depend on the order of threads; slower there.
        evaluate_steps: steps between two evaluations on the dev split within dense training and recovery, whose result
            is then the state that measured best; null: the last.
        offline: never ask the hub.
        log_every: steps between two lines of metrics.jsonl.
        checkpoint_steps: steps between two checkpoints; null: by time alone.
        checkpoint_minutes: minutes between two checkpoints; whichever comes first.
        keep_checkpoints: how many of the newest stay; the best of ``evaluate_steps`` stays too.
        geometry: of a fresh model, for ``model: demo`` alone.
        dense: fine-tuning of the whole model, before it is pruned.
        prune: what to prune and how far.
        distillation: what a student is compared with its teacher in; null: pruning has no teacher.
    """

    model: str
    data: str
    seed: Annotated[Integer, Field(ge=0, lt=2**31)] = 0
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    eval_batch_size: Count = 64
    fsdp: Count = 1
    rematerialize: bool = False
    deterministic: bool = False
    evaluate_steps: Count | None = None
    offline: bool = False
    log_every: Count = 50
    checkpoint_steps: Count | None = None
    checkpoint_minutes: Annotated[Real, Field(gt=0)] = 10.0
    keep_checkpoints: Count = 2
    geometry: ModelConfig | None = None
    dense: DenseStage = DenseStage()
    prune: Prune = Prune()
    distillation: Distillation | None = Distillation()

    @model_validator(mode="after")
    def _geometry_given(self) -> RunConfig:
        if (self.model == "demo") != (self.geometry is not None):
            raise ValueError("model demo needs a geometry, and no other model takes one")
        if (self.model == "demo") != (self.data == "demo"):
            raise ValueError("model demo and data demo go together: both are generated")
        return self

    @model_validator(mode="after")
    def _teachers_teach(self) -> RunConfig:
        for name, stage in (("heads_rows", self.prune.heads_rows), ("blocks", self.prune.blocks)):
            if self.distillation is None and stage.enabled and stage.teacher is not None:
                raise ValueError(f"prune.{name} names a teacher, and distillation is null: nothing would ask it")
        stages = [stage for stage in (self.prune.heads_rows, self.prune.blocks) if stage.enabled]
        recovers = any(stage.recover for stage in stages)
        if self.distillation is not None and self.distillation.variants and not recovers:
            raise ValueError("distillation.variants is for recovery, and no stage has any: set its recover above 0")
        if self.distillation is not None and stages and not recovers and self.distillation.recovery != "all":
            raise ValueError("distillation.recovery is of recovery, and no stage has any: set its recover above 0")
        return self
