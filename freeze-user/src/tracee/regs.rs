//! The registers of an x86-64 thread, and the signal frame that puts them back without a tracer.

use serde::{Deserialize, Serialize};

/// `struct user_regs_struct` (NT_PRSTATUS), in the kernel's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}
const _: () = assert!(size_of::<Regs>() == 216);

/// `cs` of 64-bit user code; a 32-bit thread runs with 0x23.
pub const USER64_CS: u64 = 0x33;

const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

impl Regs {
    /// The system call the thread is inside of (stopped on its way out), if any.
    pub fn syscall(&self) -> Option<i64> {
        (self.orig_rax as i64 >= 0).then_some(self.orig_rax as i64)
    }

    /// Whether the kernel would start the interrupted call again by itself, as if nothing had happened.
    pub fn restarts(&self) -> bool {
        self.syscall().is_some()
            && matches!(
                self.rax as i64,
                ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK
            )
    }

    /// Whether the interrupted call would go on through `restart_syscall` with the kernel's own memory of it.
    pub fn restarts_by_block(&self) -> bool {
        self.syscall().is_some() && self.rax as i64 == ERESTART_RESTARTBLOCK
    }

    /// These registers with the interrupted call about to be made anew from its first instruction.
    pub fn rewound(&self) -> Regs {
        Regs {
            rax: self.orig_rax,
            rip: self.rip.wrapping_sub(2),
            orig_rax: !0,
            ..*self
        }
    }
}

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Where fxsave's software-reserved bytes begin; NT_X86_XSTATE has XCR0 there.
const FX_SW: usize = 464;

/// A frame which rt_sigreturn(2) takes back to `regs`, `mask` and `xstate`, to lie at address `at` (64-byte aligned).
///
/// Layout as in arch/x86/include/uapi/asm/{ucontext,sigcontext}.h: 8 bytes return address, ucontext, then fpstate.
/// The stack pointer to enter rt_sigreturn with is `at + 8`. An interrupted call is made anew, since its
/// restart cannot be expressed in a frame. `uc_stack` is made invalid on purpose: the kernel then leaves the
/// alternate stack alone.
pub fn return_frame(regs: &Regs, mask: u64, xstate: &[u8], at: u64) -> Vec<u8> {
    let regs = if regs.restarts() { regs.rewound() } else { *regs };
    const FP_AT: usize = 512;
    let mut out = Vec::with_capacity(FP_AT + xstate.len() + 4);
    out.resize(8, 0u8);
    let mut words = |list: &[u64]| list.iter().for_each(|w| out.extend_from_slice(&w.to_ne_bytes()));
    words(&[UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS]);
    words(&[0]); // uc_link
    words(&[0, 0xdead, 0]); // uc_stack: no such flags
    words(&[
        regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]);
    words(&[
        regs.rdi, regs.rsi, regs.rbp, regs.rbx, regs.rdx, regs.rax, regs.rcx, regs.rsp, regs.rip,
    ]);
    words(&[regs.eflags]);
    words(&[regs.cs & 0xffff | (regs.ss & 0xffff) << 48]); // cs, gs, fs, ss: two bytes each
    words(&[0, 0, mask, 0]); // err, trapno, oldmask, cr2
    words(&[if xstate.is_empty() { 0 } else { at + FP_AT as u64 }]);
    words(&[0; 8]); // reserved
    words(&[mask]);
    if !xstate.is_empty() {
        out.resize(FP_AT, 0);
        out.extend_from_slice(xstate);
        let fp = &mut out[FP_AT..];
        let features: [u8; 8] = fp[FX_SW..FX_SW + 8].try_into().unwrap_or_default();
        let size = fp.len() as u32;
        fp[FX_SW..FX_SW + 4].copy_from_slice(&FP_XSTATE_MAGIC1.to_ne_bytes());
        fp[FX_SW + 4..FX_SW + 8].copy_from_slice(&(size + 4).to_ne_bytes());
        fp[FX_SW + 8..FX_SW + 16].copy_from_slice(&features);
        fp[FX_SW + 16..FX_SW + 20].copy_from_slice(&size.to_ne_bytes());
        out.extend_from_slice(&FP_XSTATE_MAGIC2.to_ne_bytes());
    }
    out
}
