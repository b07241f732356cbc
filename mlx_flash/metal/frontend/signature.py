"""Writes the Metal text of a kernel as `mx.fast.metal_kernel` does: signature, body and instantiation."""

import mlx.core as mx

# (name, type) of every attribute that MLX looks for in the body. The order is that of the kernel's parameters.
ATTRIBUTES = (
    ("dispatch_quadgroups_per_threadgroup", "uint"),
    ("dispatch_simdgroups_per_threadgroup", "uint"),
    ("dispatch_threads_per_threadgroup", "uint3"),
    ("grid_origin", "uint3"),
    ("grid_size", "uint3"),
    ("quadgroup_index_in_threadgroup", "uint"),
    ("quadgroups_per_threadgroup", "uint"),
    ("simdgroup_index_in_threadgroup", "uint"),
    ("simdgroups_per_threadgroup", "uint"),
    ("thread_execution_width", "uint"),
    ("thread_index_in_quadgroup", "uint"),
    ("thread_index_in_simdgroup", "uint"),
    ("thread_index_in_threadgroup", "uint"),
    ("thread_position_in_grid", "uint3"),
    ("thread_position_in_threadgroup", "uint3"),
    ("threadgroup_position_in_grid", "uint3"),
    ("threadgroups_per_grid", "uint3"),
    ("threads_per_grid", "uint3"),
    ("threads_per_simdgroup", "uint"),
    ("threads_per_threadgroup", "uint3"),
)

# MLX passes inputs with fewer elements in the constant address space.
CONSTANT_BELOW = 8

_TYPE_NAMES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
    mx.float64: "double",
    mx.complex64: "complex64_t",
}


def type_name(dtype: mx.Dtype) -> str:
    """The Metal name of an MLX dtype."""
    return _TYPE_NAMES[dtype]


def shape_facts(input_names: list[str], source: str) -> list[tuple[bool, bool, bool]]:
    """For each input, whether the body mentions its shape, its strides and its ndim.

    MLX searches the text for these words, so they are searched for here too.
    """
    return [tuple(f"{name}_{what}" in source for what in ("shape", "strides", "ndim")) for name in input_names]


def _template_argument(value) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int):
        return str(value)
    return type_name(value)


def _template_parameter(value) -> str:
    if isinstance(value, bool):
        return "bool"
    return "int" if isinstance(value, int) else "typename"


def kernel_name(name, template, inputs, output_dtypes) -> str:
    """The name that MLX gives to the specialised function. inputs: (dtype, ndim, size) of each."""
    words = ["custom_kernel_" + name]
    if template:
        arguments = "_".join(_template_argument(value) for _, value in template)
        words.append("_" + arguments if arguments else "")
    for dtype, ndim, size in inputs:
        words.append(type_name(dtype) + ("s" if ndim == 0 else "c" if size < CONSTANT_BELOW else ""))
    words += [type_name(dtype) for dtype in output_dtypes]
    return "_".join(words)


def kernel_text(
    function, header, source, input_names, inputs, output_names, output_dtypes, template, atomic_outputs
) -> str:
    """The whole Metal text. inputs: (dtype, ndim, size) of each; function: the result of kernel_name."""
    text = [header]
    if template:
        parameters = ", ".join(f"{_template_parameter(value)} {name}" for name, value in template)
        text.append(f"template <{parameters}>\n")
    text.append(f"[[kernel]] void {function}(\n")
    index = 0
    for name, (dtype, ndim, size), facts in zip(input_names, inputs, shape_facts(input_names, source)):
        space = "constant" if size < CONSTANT_BELOW else "device"
        text.append(f"  const {space} {type_name(dtype)}{'*' if ndim else '&'} {name} [[buffer({index})]],\n")
        index += 1
        if ndim:
            forms = (f"int* {name}_shape", f"int64_t* {name}_strides", f"int& {name}_ndim")
            for wanted, form in zip(facts, forms):
                if wanted:
                    text.append(f"  const constant {form} [[buffer({index})]],\n")
                    index += 1
    attributes = [f"  {kind} {name} [[{name}]]" for name, kind in ATTRIBUTES if name in source]
    for name, dtype in zip(output_names, output_dtypes):
        kind = f"atomic<{type_name(dtype)}>" if atomic_outputs else type_name(dtype)
        text.append(f"  device {kind}* {name} [[buffer({index})]]")
        # MLX compares with the number of arrays and not of buffers, so shapes without attributes end the list early.
        goes_on = index < len(inputs) + len(output_names) - 1 or attributes
        text.append(",\n" if goes_on else ") {\n")
        index += 1
    if attributes:
        text.append(",\n".join(attributes) + ") {\n")
    text.append(source + "\n}\n")
    if template:
        call = function + "<" + ", ".join(_template_argument(value) for _, value in template) + ">"
        text.append(f'\ntemplate [[host_name("{function}")]] [[kernel]] decltype({call}) {call};\n')
    return "".join(text)
