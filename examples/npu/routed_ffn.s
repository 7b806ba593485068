; y = Σ_c g_c · W_down,c( silu(W_gate,c x) ⊙ W_up,c x ) of 8 tokens over 4 modules, 32 wide inside and out, int4 weights in groups
; of 32 with f16 scales, activations int8 per token. How many tokens a module has is known only when this runs; a module
; that nobody chose costs a skip and none of its weights are fetched. For arrays of 16 × 16 or more.

.equ T, 8                           ; tokens
.equ C, 4                           ; modules
.equ K_MAX, 2                       ; modules of a token
.equ D, 32                          ; width of a token, one group of inputs
.equ F, 32                          ; width inside of a module
.equ BLOCK, 4                       ; tokens that are computed together
.equ TILE, 16                       ; a tile is 16 inputs × 16 outputs
.equ TILE_BYTES, TILE*TILE/2        ; int4
.equ SCALE_BYTES, 32*2              ; f16 scales of 32 outputs
; A matrix is 4 tiles: inputs 0–15 and 16–31 of outputs 0–15, then of outputs 16–31. Then its scales. Gate, up, down.
.equ MATRIX_BYTES, 4*TILE_BYTES + SCALE_BYTES
.equ MODULE_BYTES, 3*MATRIX_BYTES

; Tokens, each from one queue to another.
.equ input_there, t1                ; LOAD -> VECTOR
.equ scores_there, t2               ; LOAD -> ROUTE
.equ table_there, t3                ; ROUTE -> sequencer
.equ list_there, t4                 ; ROUTE -> VECTOR
.equ weights_there, t5              ; LOAD -> MATRIX
.equ weights_free, t6               ; MATRIX -> LOAD
.equ codes_there, t7                ; VECTOR -> MATRIX
.equ sums_there, t8                 ; MATRIX -> VECTOR
.equ output_there, t9               ; VECTOR -> STORE

; The scratchpad.
.equ X, 0                           ; f32 [T, D]
.equ CODES, 2048                    ; i8 [T, D]
.equ SCALES, 2560                   ; f32 [T]
.equ SCORES, 3072                   ; f32 [T, C]
.equ MASK, 3584                     ; u8 [T, C]
.equ GATES, 3840                    ; f32 [T, C]
.equ TABLE, 4096                    ; 16-byte records
.equ LIST, 4352                     ; u32 [T·K_MAX], and a block more that is never used
.equ LIST_GATES, 4608               ; f32, the same
.equ BLOCK_CODES, 8192              ; i8 [BLOCK, D]: codes of a block of tokens
.equ BLOCK_SCALES, 8320             ; f32 [BLOCK]
.equ GATE, 8704                     ; f32 [BLOCK, F]
.equ UP, 9216                       ; f32 [BLOCK, F]
.equ HIDDEN_CODES, 9728             ; i8 [BLOCK, F]
.equ HIDDEN_SCALES, 9856            ; f32 [BLOCK]
.equ DOWN, 10240                    ; f32 [BLOCK, D]
.equ Y, 16384                       ; f32 [T, D]

; Accumulators: BLOCK rows each.
.equ SUMS, 0                        ; i32 of the first half of a group
.equ ACC, 4                         ; f32: outputs 0–15 and 16–31 of gate, then of up
.equ ACC_UP, 12

.data x
.fill f32, 0.5, T*D
.data scores
.f32 0.4, 0.3, 0.1, 0.2             ; no row has module 2 among its best two
.f32 0.1, 0.6, 0.1, 0.2
.f32 0.5, 0.2, 0.0, 0.3
.f32 0.3, 0.3, 0.1, 0.3
.f32 0.2, 0.4, 0.1, 0.3
.f32 0.7, 0.1, 0.0, 0.2
.f32 0.6, 0.3, 0.0, 0.1
.f32 0.1, 0.4, 0.0, 0.5
.data modules
.fill i4, 1, 8*TILE*TILE/2          ; module 0: gate
.fill f16, 0.01, 32
.fill i4, 2, 8*TILE*TILE/2          ; up
.fill f16, 0.02, 32
.fill i4, -1, 8*TILE*TILE/2         ; down
.fill f16, 0.03, 32
.fill u8, 0x21, C*MODULE_BYTES - MODULE_BYTES    ; the others: any bytes will do
.space y, T*D*4

.op "load"
    li r1, x
    load sp[X], dram[r1], row_bytes=T*D*4 post(input_there)
    li r2, scores
    load sp[SCORES], dram[r2], row_bytes=T*C*4 post(scores_there)

.op "route"
    li r3, T
    li r4, K_MAX
    li r5, T*K_MAX
    r.top_k sp[MASK], sp[GATES], sp[SCORES], cols=C, k=r4, rows=r3, norm wait(scores_there)
    r.group sp[TABLE], sp[LIST], sp[MASK], cols=C, most=r5, rows=r3 post(table_there)
    r.compact sp[LIST_GATES], sp[MASK], sp[GATES], cols=C, most=r5, rows=r3 post(list_there)

.op "quantize"
    v.quantize sp[CODES], sp[X], sp[SCALES], cols=D, rows=r3 wait(input_there)
    v.fill sp[Y], cols=D, value=r0, rows=r3      ; sums of modules begin with 0

.op "credits"
    sync matrix post(weights_free, weights_free) ; two modules' weights fit in the weight buffer
    sync vector wait(list_there)                 ; VECTOR reads lists from here on
    sync sequencer wait(table_there)             ; and the sequencer the table

    li r10, modules                 ; weights of the module
    li r11, TABLE                   ; its record
    li r12, 0                       ; modules that were computed: says which buffer is next
    loop r13, count=C
.op "dispatch", module=r13
        lds r14, sp[r11], max=C                  ; (its number, for the reader of a trace)
        add r15, r11, 8
        lds r16, sp[r15], max=T                  ; tokens that chose it
        skip_if_zero r16, nobody                 ; nothing of what follows is executed, nothing is fetched
        add r15, r11, 4
        lds r17, sp[r15], max=T*K_MAX            ; first of its tokens in the list
.op "weights", module=r13
        and r18, r12, 1
        mul r18, r18, MODULE_BYTES               ; buffer
        load w[r18], dram[r10], row_bytes=MODULE_BYTES wait(weights_free) post(weights_there)
        sync matrix wait(weights_there)
        add r19, r16, BLOCK-1                    ; blocks: ⌈tokens/BLOCK⌉
        shr r19, r19, 2
        loop r20, count=r19, max=T/BLOCK
.op "gather", module=r13
            mul r21, r20, BLOCK
            sub r22, r16, r21                    ; tokens of this block: what is left, at most BLOCK
            min r22, r22, BLOCK
            max r22, r22, 0                      ; never less, which the verifier cannot know
            add r21, r21, r17                    ; its place in the list, at most the list's end,
            min r21, r21, T*K_MAX                ; which the verifier cannot know either
            mul r21, r21, 4                      ; bytes
            v.gather sp[BLOCK_CODES], sp[CODES], sp[r21+LIST], bound=r3, row_bytes=D, rows=r22
            v.gather sp[BLOCK_SCALES], sp[SCALES], sp[r21+LIST], bound=r3, row_bytes=4, rows=r22 post(codes_there)
.op "gate and up", module=r13
            sync matrix wait(codes_there)
            li r27, D                            ; distance of rows of codes
            loop r24, count=2                    ; 0: gate, 1: up
                mul r23, r24, MATRIX_BYTES
                add r23, r23, r18                ; the matrix in the weight buffer
                add r25, r23, 0                  ; its next tile
                mul r26, r24, 2*BLOCK            ; its accumulators, from ACC on
                loop r28, count=2
                    mul r29, r28, SCALE_BYTES/2  ; scales of these 16 outputs, 512 bytes behind
                    add r29, r29, r23
                    ; Inputs 0–15 of the group: integers only.
                    m.preload i4, w[r25], k=TILE, n=TILE
                    m.pass sp[BLOCK_CODES], acc[SUMS], rows=r22, k=TILE, a_stride=r27
                    ; Inputs 16–31 complete the group: the sum goes through the scales into the f32 accumulators.
                    add r30, r25, TILE_BYTES
                    m.preload_scaled i4, w[r30], w[r29+4*TILE_BYTES], k=TILE, n=TILE
                    li r31, BLOCK_CODES+TILE
                    m.pass_scaled sp[r31], acc[SUMS], acc[r26+ACC], rows=r22, k=TILE, a_stride=r27, accumulate
                    add r25, r25, 2*TILE_BYTES
                    add r26, r26, BLOCK
                end
            end
            sync matrix post(sums_there)
.op "silu", module=r13
            li r28, F*4                          ; distance of rows of 32 f32
            li r29, GATE+TILE*4                  ; outputs 16–31
            li r30, UP+TILE*4
            sync vector wait(sums_there)
            v.rescale_floats sp[GATE], acc[ACC], sp[BLOCK_SCALES], cols=TILE, rows=r22, dst_stride=r28
            v.rescale_floats sp[r29], acc[ACC+BLOCK], sp[BLOCK_SCALES], cols=TILE, rows=r22, dst_stride=r28
            v.rescale_floats sp[UP], acc[ACC_UP], sp[BLOCK_SCALES], cols=TILE, rows=r22, dst_stride=r28
            v.rescale_floats sp[r30], acc[ACC_UP+BLOCK], sp[BLOCK_SCALES], cols=TILE, rows=r22, dst_stride=r28
            v.silu_mul sp[GATE], sp[GATE], sp[UP], cols=F, rows=r22
            v.quantize sp[HIDDEN_CODES], sp[GATE], sp[HIDDEN_SCALES], cols=F, rows=r22 post(codes_there)
.op "down", module=r13
            sync matrix wait(codes_there)
            add r23, r18, 2*MATRIX_BYTES        ; W_down
            add r25, r23, 0
            li r26, 0
            loop r24, count=2
                mul r29, r24, SCALE_BYTES/2
                add r29, r29, r23
                m.preload i4, w[r25], k=TILE, n=TILE
                m.pass sp[HIDDEN_CODES], acc[SUMS], rows=r22, k=TILE, a_stride=r27
                add r30, r25, TILE_BYTES
                m.preload_scaled i4, w[r30], w[r29+4*TILE_BYTES], k=TILE, n=TILE
                li r31, HIDDEN_CODES+TILE
                m.pass_scaled sp[r31], acc[SUMS], acc[r26+ACC], rows=r22, k=TILE, a_stride=r27, accumulate
                add r25, r25, 2*TILE_BYTES
                add r26, r26, BLOCK
            end
            sync matrix post(sums_there)
.op "scatter-add", module=r13
            li r29, DOWN+TILE*4
            li r30, D
            sync vector wait(sums_there)
            v.rescale_floats sp[DOWN], acc[ACC], sp[HIDDEN_SCALES], cols=TILE, rows=r22, dst_stride=r28
            v.rescale_floats sp[r29], acc[ACC+BLOCK], sp[HIDDEN_SCALES], cols=TILE, rows=r22, dst_stride=r28
            v.scatter_add sp[Y], sp[DOWN], sp[r21+LIST], sp[r21+LIST_GATES], bound=r3, cols=r30, rows=r22
        end
        sync matrix post(weights_free)           ; MATRIX is done with this module
        add r12, r12, 1
nobody:
        add r10, r10, MODULE_BYTES
        add r11, r11, 16
    end

.op "store"
    sync vector post(output_there)
    li r1, y
    store dram[r1], sp[Y], row_bytes=T*D*4 wait(output_there)
.op ""
    halt
