// The context switch: saves what a callee must keep, swaps stacks, restores. Written by hand because nothing portable is this cheap.
#pragma once
#include "system.h"

void msl_switch(void** save, void* load);
void msl_first_entry(void);

#if defined(__x86_64__)
__asm__(
    ".text\n"
    ASM_FUNCTION("msl_switch")
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  retq\n"
    ASM_FUNCTION("msl_first_entry")
    "  xorl %ebp, %ebp\n"
    "  call " ASM_NAME("msl_fiber_main") "\n"
    "  ud2\n");
enum { SAVED_WORDS = 7, RETURN_WORD = 6 };    // six registers, then the return address

#elif defined(__aarch64__)
__asm__(
    ".text\n"
    ASM_FUNCTION("msl_switch")
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n"
    ASM_FUNCTION("msl_first_entry")
    "  mov x29, #0\n"
    "  bl " ASM_NAME("msl_fiber_main") "\n"
    "  brk #1\n");
enum { SAVED_WORDS = 20, RETURN_WORD = 11 };  // x19..x30 then d8..d15; x30 is the twelfth word

#else
#error "the simulator switches contexts on x86-64 and aarch64 only"
#endif
