"""Whether an edit happened as asked: in its place, with the right shape, and with every other thing still there."""

import numpy as np
from channel_edits import Change
from frames import SceneFrames
from judge import open_judge
from regions import largest
from scoring import PRESENT, colour_classes, colour_share, decibels
from world import COLOURS, Float

STRANGE = 0.2  # share of a removed thing's place that may show a colour that does not belong there


def edit_score(picture: Float, frames: SceneFrames) -> dict[str, float]:
    """Return whether a thing was recoloured or removed, and how well the rest was kept.

    Success takes both: the new colour fills the thing's place, or what was behind a removed thing does; and the judge
    finds every thing of the edited scene, with its colour and shape.
    """
    edit = frames.story.edit
    assert edit.before is not None
    where = frames.rendering.thing == frames.story.scene.things.index(edit.before)
    truth = frames.pictures["edited"]
    if edit.after is None:
        shown, right = colour_classes(picture), colour_classes(truth)
        done = ((shown < len(COLOURS)) & (shown != right))[where].mean() <= STRANGE
    else:
        done = colour_share(picture, edit.after.colour, where) >= 0.5
    present = open_judge(side=picture.shape[1]).present(picture, edit.scene.things)
    return {
        "success": float(done and all(present)),
        "psnr": decibels(picture, truth),
        "background_psnr": decibels(picture, truth, ~where),
    }


def change_score(picture: Float, frames: SceneFrames, change: Change) -> dict[str, float]:
    """Return what ``edit_score`` does, of a change that may also add a thing.

    An added thing counts where its largest patch stands between the neighbours it was asked between; where exactly is
    not said, so what that patch covers is no background. All things of the scene have to be there.
    """
    if change.kind != "add":
        return edit_score(picture, frames)
    thing, things = frames.story.edit.before, frames.story.scene.things
    assert thing is not None
    index, classes = things.index(thing), colour_classes(picture)
    patch = largest(classes == list(COLOURS).index(thing.colour))
    done = bool(patch.mean() >= PRESENT)
    middle = np.nonzero(patch)[1].mean() if done else 0.0
    for beside, side in ((index - 1, 1), (index + 1, -1)):
        if 0 <= beside < len(things) and done:
            done = bool(side * (middle - np.nonzero(frames.rendering.thing == beside)[1].mean()) > 0)
    present = open_judge(side=picture.shape[1]).present(picture, things)
    truth, where = frames.pictures["picture"], frames.rendering.thing == index
    return {
        "success": float(done and all(present)),
        "psnr": decibels(picture, truth),
        "background_psnr": decibels(picture, truth, ~(where | patch)),
    }
