"""STUB"""
from dataclasses import dataclass
import numpy as np
@dataclass
class G:
    condition: list; targets: list; controls: list; weights: np.ndarray
@dataclass
class Draw:
    target: np.ndarray; control: np.ndarray; condition: np.ndarray; set_index: np.ndarray
def build_groups(condition, context, is_control, rows):
    C,T,S,W=[],[],[],[]
    for c in np.unique(condition):
        for x in np.unique(context):
            m=(condition==c)&(context==x)
            s=rows[(is_control)&(context==x)]
            if m.any() and len(s):
                C.append(c);T.append(rows[m]);S.append(s);W.append(np.sqrt(m.sum()))
    W=np.array(W);return G(C,T,S,W/W.sum())
class Sampler:
    def __init__(self,groups,n_sets=8,set_size=64,seed=0):
        self.g=groups;self.n=n_sets;self.s=set_size;self.seed=seed
    def draw(self,step):
        r=np.random.Generator(np.random.Philox(key=[self.seed,step]))
        gs=r.choice(len(self.g.condition),self.n,p=self.g.weights)
        def pick(a):
            return np.concatenate([r.permutation(a) for _ in range(-(-self.s//len(a)))])[:self.s]
        return Draw(np.concatenate([pick(self.g.targets[g]) for g in gs]),np.concatenate([pick(self.g.controls[g]) for g in gs]),np.repeat([self.g.condition[g] for g in gs],self.s),np.repeat(np.arange(self.n),self.s))
