; y[32, 32] = x[32, 64] · W, int8 × int8, as docs/quantization.md defines it, on an array of 16 × 16 or more.
;
; The weights come tile by tile, 16 × 16 bytes each, into two buffers. Nothing says "load the next tile while this one
; computes": LOAD runs ahead of MATRIX as far as it has tokens for free buffers, and there are two of those.

; Shapes.
.equ M, 32                          ; rows of x: tokens
.equ K, 64                          ; inputs
.equ N, 32                          ; outputs
.equ TILE, 16                       ; rows and columns of a tile
.equ TILE_BYTES, TILE*TILE

; Tokens, each from one queue to another.
.equ x_there, t1                    ; LOAD -> MATRIX: x is in the scratchpad
.equ tile_there, t2                 ; LOAD -> MATRIX: a tile is in the weight buffer
.equ tile_free, t3                  ; MATRIX -> LOAD: a buffer of the weight buffer may be overwritten
.equ sums_there, t4                 ; MATRIX -> VECTOR: 32 rows of accumulators are complete
.equ sums_free, t5                  ; VECTOR -> MATRIX: and may be overwritten
.equ y_there, t6                    ; VECTOR -> STORE: a block of y is in the scratchpad
.equ y_free, t7                     ; STORE -> VECTOR: and may be overwritten
.equ scales_there, t8               ; LOAD -> VECTOR: scales are in the scratchpad

; The scratchpad.
.equ X, 0                           ; codes of x, 64 bytes per row
.equ CHANNELS, 4096                 ; scales of the outputs, f32
.equ TOKENS, 4352                   ; scales of the tokens, f32
.equ Y, 65536                       ; two blocks of y, 32 × 16 f32 each, in banks that x is not in
.equ Y_BYTES, M*TILE*4

; What DRAM holds: x as codes and scales, W as tiles in the order in which they are used, scales of the outputs.
.data x
.fill i8, 3, M*K
.data x_scales
.fill f32, 0.5, M
.data weights
.fill i8, 1, K*N/2                  ; the left half of the outputs
.fill i8, -2, K*N/2                 ; the right half
.data w_scales
.fill f32, 0.25, N
.space y, M*N*4

.op "load x"
    li r20, x                       ; addresses beyond an instruction's constant stand in registers
    li r21, weights
    li r22, y
    li r23, x_scales
    li r24, w_scales
    load sp[X], dram[r20], row_bytes=M*K post(x_there)
    load sp[CHANNELS], dram[r24], row_bytes=N*4
    load sp[TOKENS], dram[r23], row_bytes=M*4 post(scales_there)  ; both are there: a queue completes in order

.op "credits"
    sync matrix post(tile_free, tile_free)      ; two buffers for tiles
    sync vector post(sums_free, sums_free)      ; two blocks of accumulators
    sync store post(y_free, y_free)             ; two blocks of y
    sync matrix wait(x_there)                   ; from here on MATRIX may read x
    sync vector wait(scales_there)              ; and VECTOR scales

.op "product"
    li r10, K                       ; distance of rows of x
    li r11, M                       ; rows, for operands that are registers
    li r12, N*4                     ; distance of rows of y in DRAM
    li r13, TILE*4                  ; and in the scratchpad, dense
    li r1, 0                        ; number of the tile
    loop r2, count=N/TILE
        and r3, r2, 1               ; which of the two blocks of accumulators and of y
        mul r4, r3, M               ; its first row of accumulators
        mul r5, r3, Y_BYTES         ; its distance in the scratchpad
        sync matrix wait(sums_free)
        loop r6, count=K/TILE
            and r7, r1, 1           ; which of the two buffers for tiles
            mul r7, r7, TILE_BYTES
            load w[r7], dram[r21], row_bytes=TILE_BYTES wait(tile_free) post(tile_there)
            m.preload i8, w[r7], k=TILE, n=TILE wait(tile_there) post(tile_free)
            mul r8, r6, TILE        ; first column of x that belongs to the tile
            branch ne, r6, 0, more
            m.pass sp[r8], acc[r4], rows=M, k=TILE, a_stride=r10          ; the first overwrites
            branch eq, r0, 0, passed
more:       m.pass sp[r8], acc[r4], rows=M, k=TILE, a_stride=r10, accumulate
passed:     add r1, r1, 1
            add r21, r21, TILE_BYTES
        end
        sync matrix post(sums_there)
        mul r9, r2, TILE*4          ; scales of these outputs
        add r9, r9, CHANNELS
        sync vector wait(y_free)
        v.rescale sp[r5+Y], acc[r4], sp[r9], sp[TOKENS], cols=TILE, rows=r11 wait(sums_there) post(sums_free, y_there)
        store dram[r22], sp[r5+Y], row_bytes=TILE*4, rows=r11, dst_stride=r12, src_stride=r13 wait(y_there) post(y_free)
        add r22, r22, TILE*4        ; the next columns of y
    end
.op ""
    halt
