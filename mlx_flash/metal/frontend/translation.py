"""The result of a translation: the new text, its kernels, and what a launch has to bind for each of them."""

from dataclasses import dataclass, field

from .signature import ATTRIBUTES

POSITIONS = tuple(name for name, _ in ATTRIBUTES)


@dataclass
class Parameter:
    """One parameter of a kernel function: a buffer, dynamic threadgroup memory or a position."""

    name: str
    attribute: str
    index: int = 0  # number of the buffer or of the threadgroup memory
    writable: bool = False  # whether the kernel may write the buffer
    condition: str = ""  # the function constant that decides whether the parameter exists
    variable: int = 0  # threadgroup memory: its number among the kernel's threadgroup variables
    constant: bool = False  # whether the buffer is in the constant address space
    axes: int = 0  # components of a position or a size; 0 if its type is not known here


@dataclass
class Translation:
    """The translated text and everything that a launch needs to know about it."""

    text: str
    kernels: dict = field(default_factory=dict)  # function name, with its namespaces: its parameters
    templates: set = field(default_factory=set)  # names of the kernels that are templates
    renamed: set = field(default_factory=set)  # names of the kernels that are found by their host name only
    places: dict = field(default_factory=dict)  # name of a kernel or an instance: the namespaces around it
    instances: dict = field(default_factory=dict)  # host name: expression to call
    types: dict = field(default_factory=dict)  # host name: types of the parameters, if they select the instance
    variables: dict = field(default_factory=dict)  # function name: names of its threadgroup variables
    constants: dict = field(default_factory=dict)  # name of a function constant: its index
    max_threads: int = 1024

    def callee(self, host_name: str | None = None) -> str:
        """The expression that names a kernel's function; the first kernel's without a host name."""
        if host_name is None:
            host_name = next(iter(self.instances or self.kernels))
        return self.instances.get(host_name, host_name)

    def within(self, host_name: str | None, code: str) -> str:
        """The code inside the namespaces of a kernel, where names have the kernel's meaning."""
        if host_name is None:
            host_name = next(iter(self.instances or self.kernels))
        for name in reversed(self.places.get(host_name, ())):
            code = f"namespace {name} {{ {code} }}"
        return code + "\n"

    def function(self, host_name: str | None = None) -> str:
        """The name of a kernel's function, with namespaces and without template arguments."""
        if host_name is None:
            host_name = next(iter(self.instances or self.kernels))
        plain = "".join(self.callee(host_name).split("<")[0].split())
        around = [name for name in self.places.get(host_name, ()) if name]
        candidates = ["::".join([*around[:depth], plain]) for depth in range(len(around), -1, -1)]
        return next((name for name in candidates if name in self.kernels), plain)

    def call(self, host_name: str | None = None) -> str:
        """A call of the kernel with the values that the launch bound."""
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
        """The function that the runtime calls in every thread."""
        return self.within(host_name, f'extern "C" void msl_kernel_entry() {{ {self.call(host_name)}; }}')

    def variable_names(self, host_name: str | None = None) -> list[str]:
        """The names of a kernel's threadgroup variables, in order."""
        return self.variables.get(self.function(host_name), [])
