"""`jrt-eval sweep`: models x tasks x settings through stock `lm_eval`, one process per job. Finished results are never lost.

    spec         a sweep file, checked key by key
    catalogue    the model types, tasks and groups of lm-eval
    plan         sweep file -> jobs (a model and a setting: one lm_eval process) of units (one task each)
    estimate     prompts and tokens of a job, before it runs
    checkpoints  checks that the checkpoints exist
    store        the folder: lock, records, results set aside
    job          one job: attempts, retries, time limit; the same under every engine
    local        engine: processes on this machine, GPUs through CUDA_VISIBLE_DEVICES
    ray_engine   engine: a Ray cluster
    watch        progress: live table, plain lines, `status`
    run          runs a sweep

Glossary: a *unit* is (model, task, setting), the smallest result that is recorded. A *job* consists of all missing units of one
(model, setting), so that its model is loaded once. An *attempt* is one `lm_eval` process of a job.
"""
