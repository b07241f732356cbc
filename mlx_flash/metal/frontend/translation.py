"""The result of translating a Metal text: the new text, its kernels and what a launch has to bind for each."""

from dataclasses import dataclass, field

from .signature import ATTRIBUTES

POSITIONS = tuple(name for name, _ in ATTRIBUTES)


@dataclass
class Parameter:
    """One parameter of a kernel function: a buffer, dynamic threadgroup memory or a position."""

    name: str
    attribute: str
    index: int = 0  # of the buffer or of the threadgroup memory
    writable: bool = False  # a buffer that the kernel may write
    condition: str = ""  # the function constant that says whether it is there
    variable: int = 0  # threadgroup memory: its number among the kernel's threadgroup variables
    constant: bool = False  # a buffer in the constant address space
    axes: int = 0  # of a position or a size: its components; 0 where its type is not known here


@dataclass
class Translation:
    """The translated text and what a launch has to know of it."""

    text: str
    kernels: dict = field(default_factory=dict)  # function name, with its namespaces -> parameters
    templates: set = field(default_factory=set)  # names of the kernels that are templates
    renamed: set = field(default_factory=set)  # names of the kernels that are found by their host name alone
    places: dict = field(default_factory=dict)  # name of a kernel or an instance -> the namespaces around it
    instances: dict = field(default_factory=dict)  # host name -> expression to call
    types: dict = field(default_factory=dict)  # host name -> types of the parameters, where they choose the instance
    variables: dict = field(default_factory=dict)  # function name -> names of its threadgroup variables
    constants: dict = field(default_factory=dict)  # name of a function constant -> its index
    max_threads: int = 1024

    def callee(self, host_name: str | None = None) -> str:
        """The expression that names the function of a kernel; without a name the first kernel's."""
        if host_name is None:
            host_name = next(iter(self.instances or self.kernels))
        return self.instances.get(host_name, host_name)

    def within(self, host_name: str | None, code: str) -> str:
        """Code that stands in the namespaces of a kernel, so that names mean what they mean there."""
        if host_name is None:
            host_name = next(iter(self.instances or self.kernels))
        for name in reversed(self.places.get(host_name, ())):
            code = f"namespace {name} {{ {code} }}"
        return code + "\n"

    def function(self, host_name: str | None = None) -> str:
        """The name of a kernel's function, with its namespaces and without arguments of a template."""
        if host_name is None:
            host_name = next(iter(self.instances or self.kernels))
        plain = "".join(self.callee(host_name).split("<")[0].split())
        around = [name for name in self.places.get(host_name, ()) if name]
        candidates = ["::".join([*around[:depth], plain]) for depth in range(len(around), -1, -1)]
        return next((name for name in candidates if name in self.kernels), plain)

    def call(self, host_name: str | None = None) -> str:
        """The kernel called with what the launch bound."""
        arguments = []
        for parameter in self.kernels[self.function(host_name)]:
            if parameter.attribute == "buffer":
                arguments.append(f"msl_buffer_argument{{{parameter.index}}}")
            elif parameter.attribute == "threadgroup":
                arguments.append(f"msl_threadgroup_argument{{{parameter.variable}}}")
            else:
                arguments.append(f"msl_attribute_argument<{POSITIONS.index(parameter.attribute)}>{{}}")
        if host_name in self.types:
            arguments = [f"({kind}){argument}" for kind, argument in zip(self.types[host_name], arguments)]
        return f"{self.callee(host_name)}({', '.join(arguments)})"

    def entry(self, host_name: str | None = None) -> str:
        """The function the runtime calls in every thread."""
        return self.within(host_name, f'extern "C" void msl_kernel_entry() {{ {self.call(host_name)}; }}')

    def variable_names(self, host_name: str | None = None) -> list[str]:
        """The names of a kernel's threadgroup variables, in order."""
        return self.variables.get(self.function(host_name), [])
