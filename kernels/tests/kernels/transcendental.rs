//! How accurate exp is, over its whole range: through softmax, whose second element is exp(x) when the first is 0 and
//! the sum is forced to 1 by dividing it out.

use crate::memory::Guarded;
use crate::runnable;
use lapidary_kernels::{KernelOp, args::UnaryArgs};

/// exp(x)/(1 + exp(x)) for x ≤ 0, every 1/64 down to −110, in ulps of the true value.
#[test]
fn exp_is_accurate_over_its_range() {
    for kernel in runnable(KernelOp::Softmax) {
        let mut worst = (0.0, 0.0);
        for step in 0..110 * 64 {
            let x = -(step as f32) / 64.0;
            let pair = Guarded::of(&[0.0, x]);
            let mut y = Guarded::filled(2, 0.0);
            kernel.run(&UnaryArgs { x: pair.as_ptr(), ldx: 2, y: y.as_mut_ptr(), ldy: 2, rows: 1, n: 2 });
            let e = f64::from(x).exp();
            let wanted = e / (1.0 + e);
            // Spacing of f32 at the value, of subnormals at least.
            let ulp = f64::from(
                (wanted as f32).abs().max(f32::MIN_POSITIVE).next_up() - (wanted as f32).abs().max(f32::MIN_POSITIVE),
            );
            let error = (f64::from(y[1]) - wanted).abs() / ulp;
            if error > worst.0 {
                worst = (error, x);
            }
        }
        println!("{}: {:.2} ulp at {}", kernel.row.name, worst.0, worst.1);
        // 2 of exp, and half each of the addition and the division.
        assert!(worst.0 <= 3.0, "{}: {} ulp at {}", kernel.row.name, worst.0, worst.1);
    }
}
