package podwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/levada-io/levada/stream"
)

// cluster is what a reconciler sees: its cache, and the API server behind it.
type cluster struct {
	cached  map[string]*corev1.Pod
	real    map[string]*corev1.Pod
	deleted []*corev1.Pod
	down    error // what the API server answers
	gets    int
}

func newCluster() *cluster {
	return &cluster{cached: map[string]*corev1.Pod{}, real: map[string]*corev1.Pod{}}
}

// put makes pods as they are, in the API server and in the cache.
func (c *cluster) put(pods ...*corev1.Pod) {
	for _, p := range pods {
		c.cached[p.Name], c.real[p.Name] = p, p
	}
}

func (c *cluster) remove(name string) {
	delete(c.cached, name)
	delete(c.real, name)
}

func (c *cluster) reconciler(store stream.Store, now func() time.Time, change func(*Options)) *reconciler {
	options := Options{Namespace: "orders"}.withDefaults()
	if change != nil {
		change(&options)
	}
	return &reconciler{
		options: options, store: store, now: now, logger: slog.New(slog.DiscardHandler),
		memory: map[types.UID]*podMemory{}, elsewhere: map[types.UID]time.Time{},
		pods: func() []*corev1.Pod {
			var pods []*corev1.Pod
			for _, p := range c.cached {
				pods = append(pods, trim(p))
			}
			return pods
		},
		deleted: func() []*corev1.Pod {
			pods := c.deleted
			c.deleted = nil
			return pods
		},
		get: func(_ context.Context, name string) (*corev1.Pod, error) {
			c.gets++
			if c.down != nil {
				return nil, c.down
			}
			if p := c.real[name]; p != nil {
				return p.DeepCopy(), nil
			}
			return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, name)
		},
	}
}

// bench is a reconciler with all that it needs, at a time that stands still until it is moved.
type bench struct {
	*testing.T
	now    time.Time
	store  *leases
	world  *cluster
	r      *reconciler
	deaths []EndedOwner
}

func newBench(t *testing.T, change func(*Options)) *bench {
	b := &bench{T: t, now: at(100), world: newCluster()}
	b.store = newLeases(func() time.Time { return b.now })
	b.r = b.world.reconciler(b.store, func() time.Time { return b.now }, func(o *Options) {
		o.OnEnded = func(d EndedOwner) { b.deaths = append(b.deaths, d) }
		if change != nil {
			change(o)
		}
	})
	return b
}

func (b *bench) pass(want int) {
	b.Helper()
	n, more, err := b.r.pass(b.Context())
	if err != nil || more || n != want {
		b.Fatalf("pass: %d leases ended, more %v, error %v; want %d and no more", n, more, err, want)
	}
}

func TestOnlyTheOldContainersLeasesEnd(t *testing.T) {
	b := newBench(t, nil)
	b.world.put(newPod("a", running("k1", 0, at(0))))
	b.store.claim("old", worker("a"))
	b.pass(0)

	b.now = at(170)
	next := worker("a")
	next.Incarnation = "the next"
	b.store.claim("new", next)
	b.world.put(newPod("a", after(running("k2", 1, at(165)), oom("k1", at(150)))))
	b.pass(1)
	b.store.mustBeOver(t, "old")
	if len(b.deaths) != 1 || b.deaths[0].Owner != worker("a") || b.deaths[0].Expired != 1 || b.deaths[0].Reason != "OOMKilled" || b.deaths[0].Node != "node-1" {
		t.Errorf("deaths reported: %+v", b.deaths)
	}
}

func TestAWrongClockCostsALivingWorkerOnlyOneAttempt(t *testing.T) {
	b := newBench(t, nil)
	// The node is an hour ahead: what its new container claims seems to be older than the container.
	b.world.put(newPod("a", after(running("k2", 1, at(3700)), oom("k1", at(3690)))))
	b.store.claim("job", worker("a"))
	b.pass(1)
	for range 10 {
		b.now = b.now.Add(time.Minute)
		b.store.claim("job", worker("a"))
		b.pass(0)
	}
	b.store.mustBeOver(t)
}

func TestAForceDeletedPodThatLivesOnLosesItsLeasesOnce(t *testing.T) {
	b := newBench(t, nil)
	b.world.put(newPod("a", running("k1", 0, at(0))))
	b.store.claim("job", worker("a"))
	b.pass(0)
	b.world.remove("a")
	b.pass(1)
	b.store.claim("job", worker("a")) // its node is cut off from Kubernetes, not from the database
	b.now = at(200)
	b.pass(0)
	b.store.mustBeOver(t)
}

func TestAClockBehindDoesNotHideADeath(t *testing.T) {
	b := newBench(t, nil)
	b.world.put(newPod("a", running("k1", 0, at(0))))
	b.store.claim("old", worker("a"))
	b.pass(0)
	b.now = at(200)
	b.store.claim("young", worker("a")) // claimed just before the end, which the node's clock says was 5 s ago
	b.world.put(newPod("a", terminated(oom("k1", at(195)), 0)))
	b.pass(2)
}

func TestOwnersThatAreNotJudged(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Options)
		setup  func(*bench)
		gets   int
	}{
		{"outside Kubernetes", nil, func(b *bench) { b.store.claim("job", stream.Owner{Pod: "laptop", Incarnation: "i"}) }, 0},
		{"pod that does not match the selector", func(o *Options) { o.Selector = "app=orders" }, func(b *bench) {
			b.world.real["a"] = newPod("a", terminated(oom("k1", at(60)), 0))
			b.store.claim("job", worker("a"))
		}, 1},
		{"pod of another namespace", func(o *Options) { o.SharedStore = true }, func(b *bench) { b.store.claim("job", worker("a")) }, 0},
		{"pod without a name", nil, func(b *bench) {
			owner := worker("a")
			owner.Pod = ""
			b.store.claim("job", owner)
		}, 0},
		{"container of another name", nil, func(b *bench) {
			owner := worker("a")
			owner.Container = "other"
			b.world.put(newPod("a", terminated(oom("k1", at(200)), 0)))
			b.store.claim("job", owner)
		}, 0},
		{"one of several containers, nobody knows which", nil, func(b *bench) {
			owner := worker("a")
			owner.Container = ""
			pod := newPod("a", terminated(oom("k1", at(200)), 0))
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "proxy"})
			b.world.put(pod)
			b.store.claim("job", owner)
		}, 0},
		{"pod that is about to end", nil, func(b *bench) {
			b.world.put(disrupted(deleting(newPod("a", running("k1", 0, at(0))))))
			b.store.claim("job", worker("a"))
		}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t, test.change)
			test.setup(b)
			b.pass(0)
			b.pass(0)
			if b.world.gets != test.gets || b.store.calls() != 0 {
				t.Errorf("%d pods were asked for, want %d; Expire was called %d times, want 0", b.world.gets, test.gets, b.store.calls())
			}
		})
	}
}

func TestAbsence(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Options)
		setup  func(*bench)
		gone   int
		gets   int
	}{
		{"deleted while nobody watched", nil, func(*bench) {}, 1, 1},
		{"another pod has its name", nil, func(b *bench) {
			other := newPod("a", running("k1", 0, at(0)))
			other.UID = "another"
			b.world.put(other)
		}, 1, 1},
		{"seen, then deleted", nil, func(b *bench) {
			b.world.put(newPod("a", running("k1", 0, at(0))))
			b.pass(0)
			b.world.remove("a")
		}, 1, 0},
		{"seen, then replaced by another of its name", nil, func(b *bench) {
			b.world.put(newPod("a", running("k1", 0, at(0))))
			b.pass(0)
			other := newPod("a", running("k1", 0, at(0)))
			other.UID = "another"
			b.world.put(other)
		}, 1, 0},
		{"seen, then deleted, in a shared store", func(o *Options) { o.SharedStore = true }, func(b *bench) {
			b.world.put(newPod("a", running("k1", 0, at(0))))
			b.pass(0)
			b.world.remove("a")
		}, 1, 0},
		{"its labels do not match any more", func(o *Options) { o.Selector = "app=orders" }, func(b *bench) {
			b.world.put(newPod("a", running("k1", 0, at(0))))
			b.pass(0)
			delete(b.world.cached, "a")
		}, 0, 1},
		{"deleted, with a selector", func(o *Options) { o.Selector = "app=orders" }, func(b *bench) {
			b.world.put(newPod("a", running("k1", 0, at(0))))
			b.pass(0)
			b.world.remove("a")
		}, 1, 1},
		{"drained and deleted, with a selector", func(o *Options) { o.Selector = "app=orders" }, func(b *bench) {
			b.world.put(deleting(newPod("a", running("k1", 0, at(0)))))
			b.pass(0)
			b.world.remove("a")
		}, 1, 0},
		{"its labels match again, then it is drained and deleted", func(o *Options) { o.Selector = "app=orders" }, func(b *bench) {
			pod := newPod("a", running("k1", 0, at(0)))
			b.world.put(pod)
			b.pass(0)
			delete(b.world.cached, "a")
			b.pass(0) // asks
			b.world.put(deleting(pod))
			b.pass(0)
			b.world.remove("a")
		}, 1, 1},
		{"not in the cache yet", nil, func(b *bench) { b.world.real["a"] = newPod("a", running("k1", 0, at(0))) }, 0, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t, test.change)
			b.store.claim("job", worker("a"))
			test.setup(b)
			b.pass(test.gone)
			if b.world.gets != test.gets {
				t.Errorf("%d pods were asked for, want %d", b.world.gets, test.gets)
			}
			b.pass(0)
			for _, d := range b.deaths {
				if d.Cause != PodGone {
					t.Errorf("cause %q, want %q", d.Cause, PodGone)
				}
			}
		})
	}
}

func TestAPodThatLivedBetweenTwoPasses(t *testing.T) {
	b := newBench(t, nil)
	b.store.claim("job", worker("a"))
	b.world.deleted = []*corev1.Pod{disrupted(newPod("a", terminated(oom("k1", at(60)), 0)))}
	b.pass(1)
	if d := b.deaths[0]; d.Cause != PodGone || d.Reason != "PreemptionByScheduler" || d.ExitCode != 137 || d.Node != "node-1" || b.world.gets != 0 {
		t.Errorf("death %+v after %d questions, want what the deleted pod says, and no question", d, b.world.gets)
	}
}

func TestAPodThatIsNotWatchedIsAskedForAgain(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Selector = "app=orders" })
	b.world.real["a"] = newPod("a", running("k1", 0, at(0)))
	b.store.claim("job", worker("a"))
	b.pass(0)
	b.world.remove("a")
	b.now = b.now.Add(29 * time.Second)
	b.pass(0)
	b.now = b.now.Add(2 * time.Second) // Resync is over
	b.pass(1)
}

func TestErrorsAreNotDeaths(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for _, err := range []error{
		context.DeadlineExceeded, errors.New("connection refused"), apierrors.NewForbidden(pods, "a", nil), apierrors.NewInternalError(errors.New("etcd")),
		apierrors.NewTooManyRequests("slow down", 1), apierrors.NewResourceExpired("too old"), apierrors.NewServiceUnavailable("no"),
	} {
		b := newBench(t, nil)
		b.world.down = err
		b.store.claim("job", worker("a"))
		if n, _, got := b.r.pass(t.Context()); n != 0 || !errors.Is(got, err) {
			t.Errorf("%v: %d leases ended, error %v", err, n, got)
		}
		b.world.down = nil
		b.pass(1)
	}
}

func TestAStoreThatFails(t *testing.T) {
	broken := errors.New("the database is away")
	b := newBench(t, nil)
	b.store.claim("a", worker("a"))
	b.store.claim("b", worker("b"))
	b.world.put(newPod("a", terminated(oom("k1", at(200)), 0)), newPod("b", terminated(oom("k1", at(200)), 0)))
	b.store.breakWith(broken)
	if n, more, err := b.r.pass(t.Context()); n != 0 || !more || !errors.Is(err, broken) {
		t.Fatalf("%d leases, more %v, error %v", n, more, err)
	}
	// Now only Expire fails: nothing may count as done.
	b.store.breakWith(nil)
	b.r.store = failingExpire{b.store, broken}
	if n, more, err := b.r.pass(t.Context()); n != 0 || !more || !errors.Is(err, broken) {
		t.Fatalf("%d leases, more %v, error %v", n, more, err)
	}
	b.r.store = b.store
	b.pass(2)
}

type failingExpire struct {
	*leases
	err error
}

func (s failingExpire) Expire(context.Context, stream.ExpireFilter) (int, error) { return 0, s.err }

func TestManyUnknownOwnersAreAskedForInPortions(t *testing.T) {
	b := newBench(t, nil)
	for i := range 2*maxGets + 1 {
		b.store.claim(fmt.Sprint(i), worker(fmt.Sprintf("p%02d", i)))
	}
	for _, want := range []struct {
		ended int
		more  bool
	}{{maxGets, true}, {maxGets, true}, {1, false}, {0, false}} {
		if n, more, err := b.r.pass(t.Context()); n != want.ended || more != want.more || err != nil {
			t.Fatalf("%d leases ended, more %v, error %v; want %+v", n, more, err, want)
		}
	}
}

func TestMemoryIsFreed(t *testing.T) {
	b := newBench(t, nil)
	for i := range 100 {
		name := fmt.Sprint(i)
		b.world.put(newPod(name, running("k1", 0, at(0))))
		b.store.claim(name, worker(name))
		b.store.claim("elsewhere"+name, worker("x"+name))
		b.world.real["x"+name] = newPod("x" + name)
	}
	for range 10 {
		if _, more, err := b.r.pass(t.Context()); err != nil {
			t.Fatal(err)
		} else if !more {
			break
		}
	}
	if len(b.r.memory) != 100 || len(b.r.elsewhere) != 100 {
		t.Fatalf("%d pods and %d elsewhere are remembered, want 100 each", len(b.r.memory), len(b.r.elsewhere))
	}
	b.world.cached = map[string]*corev1.Pod{}
	b.pass(100)
	b.store.jobs = map[string]*lease{}
	b.now = b.now.Add(forgetAfter / 2)
	b.pass(0)
	if len(b.r.memory) != 100 {
		t.Errorf("%d pods are remembered half an hour after they went, want 100", len(b.r.memory))
	}
	b.now = b.now.Add(forgetAfter)
	b.pass(0)
	if len(b.r.memory) != 0 || len(b.r.elsewhere) != 0 {
		t.Errorf("%d pods and %d elsewhere are still remembered, want none", len(b.r.memory), len(b.r.elsewhere))
	}
}
