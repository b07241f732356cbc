"""What translating a Metal text yields: the new text, its kernels and what a launch has to bind for each."""

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


@dataclass
class Translation:
    """The translated text and what a launch has to know of it."""

    text: str
    kernels: dict = field(default_factory=dict)  # function name -> parameters
    templates: set = field(default_factory=set)  # names of the kernels that are templates
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

    def function(self, host_name: str | None = None) -> str:
        """The plain name of a kernel's function."""
        return self.callee(host_name).split("<")[0].split("::")[-1].strip()

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
        return f'extern "C" void msl_kernel_entry() {{ {self.call(host_name)}; }}\n'

    def variable_names(self, host_name: str | None = None) -> list[str]:
        """The names of a kernel's threadgroup variables, in order."""
        return self.variables.get(self.function(host_name), [])
