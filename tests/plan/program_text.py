"""A short program as the TPU compiler writes it: one of each kind of thing that the reader has to know."""

# A loop of three with a matmul, a kernel whose metadata goes over lines and a copy that runs beside; a
# gather that blocks, one that goes on beside two fusions, a reduce-scatter made of an all-reduce.
PROGRAM = """HloModule step, is_scheduled=true, num_partitions=8

FileNames
1 "/home/x/run.py"
2 "/home/x/site-packages/maxlm/model/mlp.py"
3 "/home/x/site-packages/jax/nn.py"

FunctionNames
1 "main"

FileLocations
1 {file_name_id=1 function_name_id=1 line=5 end_line=5 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=57 end_line=57 column=1 end_column=2}
3 {file_name_id=3 function_name_id=1 line=900 end_line=900 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}


%fused_matmul (p0: bf16[128,256], p1: bf16[256,512]) -> bf16[128,512] {
  %p0 = bf16[128,256]{1,0} parameter(0)
  %p1 = bf16[256,512]{1,0} parameter(1)
  ROOT %convolution.1 = bf16[128,512]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf, metadata={op_name="jit(step)/mlp/dot_general" stack_frame_id=3}
}

%begin (q0: bf16[64,128]) -> (bf16[64,128], bf16[512,128], u32[]) {
  %q0 = bf16[64,128]{1,0} parameter(0)
  %all-gather.1 = bf16[512,128]{1,0} all-gather(%q0), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}, use_global_device_ids=true, backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %custom-call.1 = (bf16[64,128]{1,0}, bf16[512,128]{1,0}, u32[]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%go_on (r0: bf16[64,128], r1: bf16[128,256], r2: bf16[256,512]) -> bf16[128,512] {
  %r0 = bf16[64,128]{1,0} parameter(0)
  %r1 = bf16[128,256]{1,0} parameter(1)
  %r2 = bf16[256,512]{1,0} parameter(2)
  %all-gather.2 = bf16[512,128]{1,0} all-gather(%r0), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}, use_global_device_ids=true, backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  ROOT %convolution.2 = bf16[128,512]{1,0} convolution(%r1, %r2), dim_labels=bf_io->bf
}

%all-reduce-scatter.1 (s0: f32[1024,64]) -> f32[256,64] {
  %s0 = f32[1024,64]{1,0} parameter(0)
  %all-reduce.1 = f32[1024,64]{1,0} all-reduce(%s0), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true, to_apply=%sum
  %partition-id.1 = u32[] partition-id()
  ROOT %dynamic-slice.1 = f32[256,64]{1,0} dynamic-slice(%all-reduce.1, %partition-id.1, %partition-id.1), dynamic_slice_sizes={256,64}
}

%body (p: (s32[], bf16[128,256], bf16[256,512], bf16[64,128], s8[1,2,2], s8[1,2,2])) -> (s32[], bf16[128,256], bf16[256,512], bf16[64,128], s8[1,2,2], s8[1,2,2]) {
  %p = (s32[], bf16[128,256]{1,0}, bf16[256,512]{1,0}, bf16[64,128]{1,0}, s8[1,2,2]{2,1,0}, /*index=5*/s8[1,2,2]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[128,256]{1,0} get-tuple-element(%p), index=1
  %w = bf16[256,512]{1,0} get-tuple-element(%p), index=2
  %shard = bf16[64,128]{1,0} get-tuple-element(%p), index=3
  %next = s8[1,2,2]{2,1,0} get-tuple-element(%p), index=4
  %blocks = s8[1,2,2]{2,1,0} get-tuple-element(%p), index=5
  %copy-start.1 = (s8[1,2,2]{2,1,0:S(1)}, s8[1,2,2]{2,1,0}, u32[]{:S(2)}) copy-start(%blocks)
  %copy-done.1 = s8[1,2,2]{2,1,0:S(1)} copy-done(%copy-start.1)
  %fusion.1 = bf16[128,512]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused_matmul, metadata={op_name="jit(step)/mlp/dot_general" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %splash_mha_fwd.7 = bf16[4,2048,128]{2,1,0} custom-call(%next, %copy-done.1, %x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 1024}"
}}, metadata={op_name="jit(step)/attention/pallas_call" stack_frame_id=2}, backend_config={"custom_call_config":{"body":"TUzvUg=="}}
  %fusion.2 = bf16[128,512]{1,0} fusion(%shard, %x, %w), kind=kOutput, calls=%go_on, backend_config={"window_config":{"estimated_cycles":"1100"}}
  %one = s32[] constant(1)
  %add.1 = s32[]{:S(6)} add(%i, %one)
  ROOT %tuple.1 = (s32[], bf16[128,256]{1,0}, bf16[256,512]{1,0}, bf16[64,128]{1,0}, s8[1,2,2]{2,1,0}, /*index=5*/s8[1,2,2]{2,1,0}) tuple(%add.1, %x, %w, %shard, %next, /*index=5*/%blocks)
}

%condition (c: (s32[], bf16[128,256], bf16[256,512], bf16[64,128], s8[1,2,2], s8[1,2,2])) -> pred[] {
  %c = (s32[], bf16[128,256]{1,0}, bf16[256,512]{1,0}, bf16[64,128]{1,0}, s8[1,2,2]{2,1,0}, /*index=5*/s8[1,2,2]{2,1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(3)
  %j = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.2 = f32[] add(%a, %b)
}

ENTRY %main (x0: bf16[128,256], w0: bf16[32,512], g0: f32[1024,64], s0: bf16[64,128]) -> f32[256,64] {
  %x0 = bf16[128,256]{1,0} parameter(0)
  %w0 = bf16[32,512]{1,0} parameter(1)
  %g0 = f32[1024,64]{1,0} parameter(2)
  %s1 = bf16[64,128]{1,0} parameter(3)
  %zero = s32[] constant(0)
  %next0 = s8[1,2,2]{2,1,0} constant({ { { 0, 0 }, { 0, 1 } } })
  %blocks0 = s8[1,2,2]{2,1,0} constant({ { { 1, 0 }, { 2, 1 } } })
  %all-gather.3 = bf16[256,512]{1,0} all-gather(%w0), channel_id=3, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(step)/mlp/gather" stack_frame_id=2}
  %fusion.3 = (bf16[64,128]{1,0}, bf16[512,128]{1,0}, u32[]) fusion(%s1), kind=kCustom, calls=%begin
  %tuple.2 = (s32[], bf16[128,256]{1,0}, bf16[256,512]{1,0}, bf16[64,128]{1,0}, s8[1,2,2]{2,1,0}, /*index=5*/s8[1,2,2]{2,1,0}) tuple(%zero, %x0, %all-gather.3, %s1, %next0, /*index=5*/%blocks0)
  %while.1 = (s32[], bf16[128,256]{1,0}, bf16[256,512]{1,0}, bf16[64,128]{1,0}, s8[1,2,2]{2,1,0}, /*index=5*/s8[1,2,2]{2,1,0}) while(%tuple.2), condition=%condition, body=%body
  %transpose.1 = f32[64,1024]{1,0} transpose(%g0), dimensions={1,0}
  %odd = f32[1024,64]{1,0} copy(%g0), backend_config={"window_config":{"estimated_cycles":"18446744073709551000"}}
  ROOT %fusion.4 = f32[256,64]{1,0} fusion(%odd), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
