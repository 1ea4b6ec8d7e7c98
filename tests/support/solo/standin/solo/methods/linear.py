class LinearModel:
    def __init__(self, cfg):
        self.cfg = self.add_and_assert_specific_cfg(cfg)

    @staticmethod
    def add_and_assert_specific_cfg(cfg):
        return cfg
