"""What Metal has and no target here has: textures, ray tracing, and the stages that draw. A sentence says so."""

from collections.abc import Iterator

from .errors import ABSENT
from .tokens import Token, Tokens

_TEXTURES = "textures or samplers"
_RAYS = "rays"
_TABLES = "tables of functions or command buffers"
_TILES = "imageblocks"
_DIMENSIONS = ("1d", "1d_array", "2d", "2d_array", "2d_ms", "2d_ms_array", "3d", "cube", "cube_array")
_TYPES = {
    **{f"{kind}{dimension}": _TEXTURES for kind in ("texture", "depth") for dimension in _DIMENSIONS},
    **dict.fromkeys(("texture_buffer", "sampler"), _TEXTURES),
    **dict.fromkeys(("raytracing", "acceleration_structure", "instance_acceleration_structure",
                     "primitive_acceleration_structure", "intersector", "intersection_query",
                     "intersection_function_table"), _RAYS),
    **dict.fromkeys(("visible_function_table", "command_buffer", "render_command", "compute_command"), _TABLES),
    **dict.fromkeys(("imageblock", "imageblock_layout_explicit", "imageblock_layout_implicit"), _TILES),
}  # fmt: skip
_ATTRIBUTES = {
    **dict.fromkeys(("texture", "sampler"), _TEXTURES),
    **dict.fromkeys(("payload", "intersection"), _RAYS),
    "imageblock_data": _TILES,
    **dict.fromkeys(("stage_in", "vertex_id", "instance_id", "base_vertex", "base_instance", "position", "point_size",
                     "point_coord", "clip_distance", "front_facing", "color", "depth", "primitive_id", "sample_id",
                     "sample_mask", "barycentric_coord", "render_target_array_index", "viewport_array_index", "patch",
                     "patch_id", "position_in_patch"), "stages that draw"),
}  # fmt: skip
_DEFINES = ("struct", "class", "union", "enum", "typename", "using", "namespace")


def absent(tokens: Tokens) -> Iterator[tuple[Token, str]]:
    """Yields (token, reason) for each word that names something of this kind, unless the text defines the name."""
    own = {tokens[index + 1].text for index in tokens.where(_DEFINES, 1)}
    attribute = False
    for index in tokens.where((*_TYPES, *_ATTRIBUTES, "[[", "]]")):
        token = tokens[index]
        if token.text in ("[[", "]]"):
            attribute = token.text == "[["
        if not 0 < index < len(tokens) - 1:
            continue
        before, after = tokens[index - 1], tokens[index + 1]
        if attribute:
            if before.text in ("[[", ",") and token.text in _ATTRIBUTES:
                yield token, _sentence(_ATTRIBUTES[token.text])
        elif token.text in _TYPES and token.text not in own and before.text not in (".", "->"):
            if after.text in ("<", "::") or after.kind == "word":
                yield token, _sentence(_TYPES[token.text])


def _sentence(what: str) -> str:
    return f"{ABSENT} {what} here: compute kernels work on buffers"
