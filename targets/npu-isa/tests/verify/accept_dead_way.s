; r1 is 0: what is skipped is never executed, and its mistakes do not count.
li r1, 0
skip_if_zero r1, on
v.fill sp[r9], cols=8, value=r0 wait(t5)
on:
halt
