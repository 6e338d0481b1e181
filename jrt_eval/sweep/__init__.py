"""`jrt-eval sweep`: models x tasks x settings through stock `lm_eval`, one process per job, nothing lost on the way.

    spec      a sweep file, checked key by key
    catalogue what lm-eval knows: model types, tasks, groups
    plan      sweep file -> jobs (a model and a setting: one lm_eval process) of units (one task each) with fingerprints
    estimate  prompts and tokens of a job, before it runs
    store     the folder: lock, atomic records, results set aside
    job       one job: attempts, retries, time limit; the same under every engine
    local     engine: processes on this machine, GPUs by CUDA_VISIBLE_DEVICES
    ray_engine  engine: a Ray cluster
    watch     what stands where: live table, plain lines, `status`
    run       the whole

Glossary: a *unit* is (model, task, setting), the smallest thing that is recorded; a *job* is all missing units of one
(model, setting), so that its model is loaded once; an *attempt* is one `lm_eval` process of a job.
"""
