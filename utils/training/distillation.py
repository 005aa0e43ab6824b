"""Learning from a teacher: another network's embeddings (Hinton et al. 2015, arXiv 1503.02531) and inner features.

The student sees the same augmented picture as the teacher, which is patient (Beyer et al., CVPR 2022,
arXiv 2106.05237). Hints (FitNets, Romero et al. 2015, arXiv 1412.6550) compare the features within: both networks
are cut into stages that end at the same resolution. In the first epochs the stages may learn apart: each from the
teacher's own features before it, so that no stage waits for the ones below it. Without hints the networks are one
stage each, and any backbone will do; with them both need `blocks()`.
"""
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from utils.common.errors import UserError
from utils.evaluation.embedding import fold_batch_norm
from utils.training.losses import Outcome, label_losses


class Weights(NamedTuple):
    """Of the parts of the loss."""
    label: float      # cross-entropy of the ArcFace logits
    embedding: float  # 1 - cosine to the teacher's embedding
    hint: float       # mean over the stages of |student - teacher|^2 / |teacher|^2


class Stages(NamedTuple):
    """Two networks cut at the same places."""
    student: list  # modules that make the backbone, one after the other
    teacher: list  # as many
    widths: list   # at the end of each: (channels of the student, channels of the teacher)


def one_stage(net, teacher):
    """Two ArcfaceNets of any backbones -> Stages that compare nothing but their embeddings."""
    return Stages([net.arcface], [teacher.arcface], [(net.embedding_size, teacher.embedding_size)])


def matched_stages(net, teacher):
    """Two ArcfaceNets -> Stages, see match_blocks. Raises UserError for a backbone that does not tell its blocks."""
    for one in (net, teacher):
        if not hasattr(one.arcface, "blocks"):
            raise UserError(f"{one.backbone} has no blocks(), which hints compare: leave out --hint-weight and "
                            "--hint-epochs to learn from embeddings alone")
    blocks, teacher_blocks = net.arcface.blocks(), teacher.arcface.blocks()
    shapes, teacher_shapes = block_shapes(net, blocks), block_shapes(teacher, teacher_blocks)
    ends = match_blocks(shapes, teacher_shapes)
    return Stages(cut(blocks, [end for end, _ in ends]), cut(teacher_blocks, [end for _, end in ends]),
                  [(shapes[end][0], teacher_shapes[teacher_end][0]) for end, teacher_end in ends])


class Distillation(nn.Module):
    """`loss(images, labels, share)` -> Outcome, like LabelLoss.

    net: the student, an ArcfaceNet. stages: of it and its teacher, on one device; the teacher's are frozen, and folded
    as for inference. mirrored: let the target be the sum of the teacher's embeddings of the picture and of its mirror
    image, so that the student learns to give both the same; the teacher then works twice.
    `apart`: while true, and in training mode, the loss is the hints' alone and each stage is fed by the teacher.
    `maps`: linear maps between features of different widths, learned too; they are no part of the network.
    """

    def __init__(self, net, stages, weights, mirrored=False):
        super().__init__()
        self.net, self.weights, self.apart = net, weights, False
        self.leaves_parameters_out = len(stages.student) > 1 or not weights.label
        pointwise = partial(nn.Conv2d, kernel_size=1)
        entries = [nn.Identity(), *(linear_map(theirs, ours, pointwise) for ours, theirs in stages.widths[:-1])]
        self.exits = nn.ModuleList([*(linear_map(*pair, pointwise) for pair in stages.widths[:-1]),
                                    linear_map(*stages.widths[-1], nn.Linear)])
        self.maps = nn.ModuleList([*entries, *self.exits]).to(next(net.parameters()).device)
        self.student = Chain(stages.student)
        self.stages_apart = Apart([nn.Sequential(entry, stage) for entry, stage in zip(entries, stages.student)])
        teacher = Chain([fold_batch_norm(stage) for stage in stages.teacher])
        teacher = (Mirrored(teacher) if mirrored else teacher).eval().requires_grad_(False)
        # In a tuple, so that it is no submodule: never in training mode, not among the parameters.
        self.teacher = (teacher,)

    def compiled_modules(self):
        return [*self.teacher, self.student, self.stages_apart]

    def forward(self, images, labels, share=None):
        targets = self.teach(images)
        if self.apart and self.training:
            outputs = self.stages_apart([images, *targets[:-1]])
            loss, correct = self.hint_loss(outputs, targets), torch.full_like(labels, torch.nan, dtype=torch.float32)
        else:
            outputs = self.student(images)
            distance, from_labels, correct = self.embedding_losses(
                self.net.head, outputs[-1], targets[-1], labels, share)
            loss = self.weights.embedding * distance + self.weights.label * from_labels
            if self.weights.hint:
                loss = loss + self.weights.hint * self.hint_loss(outputs, targets)
        return Outcome(loss, correct, F.normalize(outputs[-1].detach().float()))

    def evaluate(self, net, images, labels):
        """The loss, without hints, of another network of the same kind, such as the averaged one.

        The embedding counts even where hints alone are learned: else nothing would tell good epochs from bad.
        """
        output = net.arcface(images)
        # forward() is not compiled: another batch size would compile it again.
        target = self.teacher[0].forward(images)[-1]
        distance, from_labels, correct = self.embedding_losses(net.head, output, target, labels)
        loss = (self.weights.embedding or 1.0) * distance + self.weights.label * from_labels
        return Outcome(loss, correct, F.normalize(output.detach().float()))

    @torch.no_grad()
    def teach(self, images):
        """-> the teacher's features at the end of each stage; the last are the target, an embedding of any length."""
        return self.teacher[0](images)

    def embedding_losses(self, head, output, target, labels, share=None):
        """-> (1 - cosine to the teacher's embedding, the labels' loss, correct (B,)), none of them weighted.

        Both losses are means over all pictures, so that a picture's labels weigh the same whoever else is in its batch.
        Where the labels have no weight their loss is 0 and `correct` NaN.
        """
        cosine = F.cosine_similarity(self.exits[-1](output).float(), target.float())
        from_labels, correct = 0.0, torch.full_like(cosine, torch.nan)
        if self.weights.label:
            losses, correct = label_losses(head, F.normalize(output.float()), labels, share)
            from_labels = losses.mean()
        return (1 - cosine).mean(), from_labels, correct

    def hint_loss(self, outputs, targets):
        return torch.stack([relative_error(to_teacher(output), target)
                            for to_teacher, output, target in zip(self.exits, outputs, targets)]).mean()


def relative_error(output, target):
    """|output - target|^2 / |target|^2, in float32."""
    target = target.float()
    return (output.float() - target).square().sum() / target.square().sum()


class Chain(nn.Module):
    """Stages one after the other: images -> the list of what each stage gives."""

    def __init__(self, stages):
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, images):
        outputs = [images]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return outputs[1:]


class Mirrored(nn.Module):
    """A Chain whose embedding points where those of an image and its mirror image, of length 1, add up to.

    Its length and all features before it, which hints compare, are the image's own.
    """

    def __init__(self, chain):
        super().__init__()
        self.chain = chain

    def forward(self, images):
        *features, embedding = self.chain(images)
        embedding, other = embedding.float(), self.chain(images.flip(3))[-1].float()
        both = F.normalize(F.normalize(embedding) + F.normalize(other))
        return [*features, both * torch.linalg.vector_norm(embedding, dim=1, keepdim=True)]


class Apart(nn.Module):
    """Stages on an input each: list -> list."""

    def __init__(self, stages):
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, inputs):
        return [stage(features) for stage, features in zip(self.stages, inputs)]


@torch.no_grad()
def block_shapes(net, blocks):
    """-> the shape (channels, height, width), or (D,) at the end, of what each block gives for a 112x112 picture."""
    training, shapes = net.training, []
    net.eval()  # so that BatchNorm's statistics stay as they are
    features = torch.zeros(1, 3, 112, 112, device=next(net.parameters()).device)
    for block in blocks:
        features = block(features)
        shapes.append(tuple(features.shape[1:]))
    net.train(training)
    return shapes


def match_blocks(shapes, teacher_shapes):
    """-> [(block of the student, block of the teacher)]: where stages end, the embeddings last.

    At a resolution at which both have as many blocks each is matched with its counterpart, elsewhere the last
    with the last. A resolution that only one of them has belongs to the stage that follows.
    """
    ends = []
    for size in dict.fromkeys(shape[1:] for shape in shapes):
        ours = [block for block, shape in enumerate(shapes) if shape[1:] == size]
        theirs = [block for block, shape in enumerate(teacher_shapes) if shape[1:] == size]
        ends += zip(ours, theirs) if len(ours) == len(theirs) else [(ours[-1], theirs[-1])] if theirs else []
    return ends


def cut(blocks, ends):
    """A list of blocks -> one module for each stage; a stage ends with the block of that index."""
    return [nn.Sequential(*blocks[start + 1:end + 1]) for start, end in zip([-1, *ends], ends)]


def linear_map(width, other, layer):
    """Identity between equal widths, else a learned linear map."""
    return nn.Identity() if width == other else layer(width, other, bias=False)
