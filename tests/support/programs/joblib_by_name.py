if __name__ == "__main__":
    import sys

    import prefork_executor

    assert not sys.modules.keys() & {"joblib", "dask", "distributed"}
    import joblib

    try:
        joblib.parallel_config(backend="prefork")
    except ValueError as error:
        print(error)
    import prefork_executor.integrations.joblib

    with joblib.parallel_config(backend="prefork", n_jobs=2):
        print(joblib.Parallel()(joblib.delayed(pow)(2, i) for i in range(5)))
