//! The features that the model knows how to offer.

/// Declares [`Feature`] with the CPUID bit of each: the word (leaf, subleaf and register) and the
/// bit in it.
macro_rules! features {
    ($( $word:ident { $( $(#[$doc:meta])* $name:ident = $bit:literal, )* } )*) => {
        /// A feature that CPUID can report, and that the engines implement.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[allow(missing_docs)]
        pub enum Feature {
            $( $( $(#[$doc])* $name = (Word::$word as u16) << 5 | $bit, )* )*
        }

        impl Feature {
            /// Every feature.
            pub const ALL: &'static [Self] = &[ $( $( Self::$name, )* )* ];
        }
    };
}

/// A register of a CPUID leaf that holds feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Word {
    /// Leaf 1, EDX.
    L1Edx,
    /// Leaf 1, ECX.
    L1Ecx,
    /// Leaf 6, EAX.
    L6Eax,
    /// Leaf 7 subleaf 0, EBX.
    L7Ebx,
    /// Leaf 7 subleaf 0, ECX.
    L7Ecx,
    /// Leaf 7 subleaf 0, EDX.
    L7Edx,
    /// Leaf 7 subleaf 1, EAX.
    L7s1Eax,
    /// Leaf 0xD subleaf 1, EAX.
    LDs1Eax,
    /// Leaf 0x80000001, EDX.
    E1Edx,
    /// Leaf 0x80000001, ECX.
    E1Ecx,
    /// Leaf 0x80000007, EDX.
    E7Edx,
    /// Leaf 0x80000008, EBX.
    E8Ebx,
    /// Leaf 0x80000021, EAX.
    E21Eax,
    /// Leaf 0x80000021, ECX.
    E21Ecx,
}

impl Word {
    /// Number of words.
    const COUNT: usize = Self::E21Ecx as usize + 1;

    /// Leaf, subleaf and register (0 is EAX, 3 EDX) of each word, in order.
    const PLACES: [(u32, u32, usize); Self::COUNT] = [
        (1, 0, 3),
        (1, 0, 2),
        (6, 0, 0),
        (7, 0, 1),
        (7, 0, 2),
        (7, 0, 3),
        (7, 1, 0),
        (0xd, 1, 0),
        (0x8000_0001, 0, 3),
        (0x8000_0001, 0, 2),
        (0x8000_0007, 0, 3),
        (0x8000_0008, 0, 1),
        (0x8000_0021, 0, 0),
        (0x8000_0021, 0, 2),
    ];
}

features! {
    L1Edx {
        Fpu = 0, De = 2, Pse = 3, Tsc = 4, Msr = 5, Pae = 6, Mce = 7, Cx8 = 8, Apic = 9, Sep = 11,
        Mtrr = 12, Pge = 13, Mca = 14, Cmov = 15, Pat = 16, Pse36 = 17, Clfsh = 19, Mmx = 23,
        Fxsr = 24, Sse = 25, Sse2 = 26, SelfSnoop = 27,
    }
    L1Ecx {
        Sse3 = 0, Pclmulqdq = 1, Ssse3 = 9, Fma = 12, Cx16 = 13, Pcid = 17, Sse41 = 19, Sse42 = 20,
        X2apic = 21, Movbe = 22, Popcnt = 23, TscDeadline = 24, Aes = 25, Xsave = 26, Avx = 28,
        F16c = 29, Rdrand = 30, Hypervisor = 31,
    }
    L6Eax {
        /// The local APIC's timer runs in every power state.
        Arat = 2,
    }
    L7Ebx {
        Fsgsbase = 0, TscAdjust = 1, Bmi1 = 3, Avx2 = 5, FdpExceptionOnly = 6, Smep = 7, Bmi2 = 8,
        Erms = 9, Invpcid = 10,
        /// FCS and FDS are always 0.
        ZeroFcsFds = 13,
        Avx512f = 16, Avx512dq = 17, Rdseed = 18, Adx = 19, Smap = 20, Avx512ifma = 21,
        Clflushopt = 23, Clwb = 24, Avx512cd = 28, Sha = 29, Avx512bw = 30, Avx512vl = 31,
    }
    L7Ecx {
        Avx512vbmi = 1, Umip = 2, Avx512vbmi2 = 6, Gfni = 8, Vaes = 9, Vpclmulqdq = 10,
        Avx512vnni = 11, Avx512bitalg = 12, Avx512vpopcntdq = 14, Rdpid = 22,
    }
    L7Edx {
        Fsrm = 4,
        /// Intel: SPEC_CTRL and PRED_CMD.
        SpecCtrl = 26,
        /// Intel: the MSR ARCH_CAPABILITIES.
        ArchCapabilities = 29,
    }
    L7s1Eax {
        AvxVnni = 4, Avx512bf16 = 5, Fzrm = 10, Fsrs = 11, Fsrc = 12, AvxIfma = 23,
    }
    LDs1Eax {
        Xsaveopt = 0, Xsavec = 1, Xgetbv1 = 2, Xsaves = 3,
    }
    E1Edx {
        Syscall = 11, Nx = 20, MmxExt = 22, Pdpe1gb = 26, Rdtscp = 27, LongMode = 29,
    }
    E1Ecx {
        Lahf = 0, CmpLegacy = 1, Lzcnt = 5, Sse4a = 6, Prefetchw = 8, TopologyExtensions = 22,
    }
    E7Edx {
        InvariantTsc = 8,
    }
    E8Ebx {
        /// FXSAVE and XSAVE always save the x87's last pointers.
        Xsaveerptr = 2,
        /// Not subject to speculative store bypass.
        SsbNo = 26,
        /// Not subject to branch type confusion.
        BtcNo = 29,
    }
    E21Eax {
        LfenceSerializing = 2,
        /// Loading a null selector clears the segment's base.
        NullSelectorClearsBase = 6,
        AutomaticIbrs = 8,
        /// There is no MSR SMM_CTL.
        NoSmmCtl = 9,
        /// Not subject to speculative return stack overflow.
        SrsoNo = 29,
    }
    E21Ecx {
        TsaSqNo = 1, TsaL1No = 2,
    }
}

/// A set of features, kept as the CPUID words themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    words: [u32; Word::COUNT],
}

impl Feature {
    const fn place(self) -> (usize, u32) {
        (self as usize >> 5, 1 << (self as u32 & 31))
    }
}

impl Features {
    /// Everything that a processor's CPUID reports, of which `leaf(leaf, subleaf)` gives the
    /// registers.
    pub(super) fn reported(leaf: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        Self {
            words: Word::PLACES.map(|(number, subleaf, register)| leaf(number, subleaf)[register]),
        }
    }

    /// Whether `feature` is in the set.
    #[inline]
    pub const fn has(&self, feature: Feature) -> bool {
        let (word, bit) = feature.place();
        self.words[word] & bit != 0
    }

    /// Adds `feature`.
    pub const fn insert(&mut self, feature: Feature) {
        let (word, bit) = feature.place();
        self.words[word] |= bit;
    }

    /// Takes `feature` out.
    pub const fn remove(&mut self, feature: Feature) {
        let (word, bit) = feature.place();
        self.words[word] &= !bit;
    }

    /// The register `word` as CPUID shows it.
    pub(super) const fn word(&self, word: Word) -> u32 {
        self.words[word as usize]
    }
}
