//! CPU features.

use crate::machine_features;
use lapidary_kernels::{Feature, FeatureSet, Isa};

#[test]
fn names_go_both_ways() {
    for &feature in Feature::ALL {
        assert_eq!(Feature::from_name(feature.name()), Some(feature));
    }
    assert_eq!(Feature::from_name("avx1024"), None);
    assert_eq!(FeatureSet::from_names(["avx", "avx1024"]), Err("avx1024"));
    let all = FeatureSet::from_names(Feature::ALL.iter().map(|feature| feature.name())).unwrap();
    assert!(all.iter().eq(Feature::ALL.iter().copied()));
}

#[test]
fn sets() {
    let set = FeatureSet::of(&[Feature::Avx, Feature::Fma]);
    assert!(set.contains(FeatureSet::EMPTY) && !FeatureSet::EMPTY.contains(set));
    assert!(set.contains(FeatureSet::of(&[Feature::Fma])));
    assert!(!set.contains(FeatureSet::of(&[Feature::Fma, Feature::Avx2])));
    assert_eq!(set.difference(FeatureSet::of(&[Feature::Fma])), FeatureSet::of(&[Feature::Avx]));
    assert!(set.difference(set).is_empty());
    assert_eq!(FeatureSet::of(&[Feature::Avx]).union(FeatureSet::of(&[Feature::Fma])), set);
}

#[test]
fn detection_agrees_with_the_standard_library() {
    let found = FeatureSet::detect();
    println!("here: {:?}", found.iter().map(Feature::name).collect::<Vec<_>>());
    #[cfg(target_arch = "x86_64")]
    assert_eq!(found, machine_features());
    #[cfg(target_arch = "aarch64")]
    assert!(machine_features().contains(found));
}

#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
#[test]
fn hwcap_agrees_with_the_standard_library() {
    // SAFETY: `getauxval` may be called with any type.
    let (hwcap, hwcap2) = unsafe { (libc::getauxval(libc::AT_HWCAP), libc::getauxval(libc::AT_HWCAP2)) };
    assert_eq!(FeatureSet::from_hwcap(hwcap, hwcap2), machine_features());
}

#[test]
fn hwcap_bits() {
    // What Linux reports on a Raspberry Pi 4 (fp asimd evtstrm crc32 cpuid) and 5 (… fphp asimdhp … asimddp).
    assert_eq!(FeatureSet::from_hwcap(0x887, 0), FeatureSet::of(&[Feature::Neon]));
    let rpi5 = FeatureSet::of(&[Feature::Neon, Feature::Fp16, Feature::Dotprod]);
    assert_eq!(FeatureSet::from_hwcap(0x0011_9fff, 0), rpi5);
    assert_eq!(FeatureSet::from_hwcap(0, 1 << 13 | 1 << 14), FeatureSet::of(&[Feature::I8mm, Feature::Bf16]));
    assert_eq!(FeatureSet::from_hwcap(1 << 9, 0), FeatureSet::EMPTY);
}

#[test]
fn better_instruction_sets_need_more() {
    assert!(Isa::Avx512.required().contains(Isa::Avx2.required()));
    assert!(Isa::ALL.is_sorted());
    assert!(Isa::Scalar.required().is_empty());
}
