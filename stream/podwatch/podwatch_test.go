package podwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/levada-io/levada/stream"
)

// api is a clientset whose watches and lists can fail, be cut and miss things.
type api struct {
	*fake.Clientset
	mu       sync.Mutex
	down     error
	watchers []*watch.RaceFreeFakeWatcher
}

// fakePods send lists as lists only, as the fake clientset says of itself.
type fakePods struct{ Pods }

func (fakePods) IsWatchListSemanticsUnSupported() bool { return true }

func newAPI() *api {
	a := &api{Clientset: fake.NewClientset()}
	fails := func(clienttesting.Action) (bool, runtime.Object, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.down != nil, nil, a.down
	}
	a.PrependReactor("list", "pods", fails)
	a.PrependReactor("get", "pods", fails)
	a.PrependWatchReactor("pods", func(clienttesting.Action) (bool, watch.Interface, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.down != nil {
			return true, nil, a.down
		}
		w := watch.NewRaceFreeFake()
		a.watchers = append(a.watchers, w)
		return true, w, nil
	})
	return a
}

// cut ends all watches; further ones, and all else, fail with err until it is nil.
func (a *api) cut(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = err
	for _, w := range a.watchers {
		w.Stop()
	}
	a.watchers = nil
}

// set stores a pod, and tells of it unless watches are cut.
func (a *api) set(t *testing.T, pods ...*corev1.Pod) {
	t.Helper()
	for _, pod := range pods {
		gvr := corev1.SchemeGroupVersion.WithResource("pods")
		_, err := a.Tracker().Get(gvr, pod.Namespace, pod.Name)
		was := !apierrors.IsNotFound(err)
		if was {
			err = a.Tracker().Update(gvr, pod, pod.Namespace)
		} else {
			err = a.Tracker().Create(gvr, pod, pod.Namespace)
		}
		if err != nil {
			t.Fatal(err)
		}
		a.tell(pod, map[bool]watch.EventType{true: watch.Modified, false: watch.Added}[was])
	}
}

func (a *api) remove(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if err := a.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("pods"), pod.Namespace, pod.Name); err != nil {
		t.Fatal(err)
	}
	a.tell(pod, watch.Deleted)
}

func (a *api) tell(pod *corev1.Pod, event watch.EventType) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if pod.Namespace != "orders" {
		return
	}
	for _, w := range a.watchers {
		w.Action(event, pod.DeepCopy())
	}
}

// bell counts notifications.
type bell struct {
	mu   sync.Mutex
	rung int
	err  error
}

func (b *bell) Send(_ context.Context, h stream.Notification) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h != (stream.Notification{}) {
		panic(fmt.Sprintf("the notification names something: %+v", h))
	}
	b.rung++
	return b.err
}

func (b *bell) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rung
}

func (*bell) Listen(context.Context, func(context.Context, stream.Notification)) error { return nil }
func (*bell) Close() error                                                             { return nil }

// start runs a watcher until stop is called, or the test ends.
func start(t *testing.T, clientset kubernetes.Interface, store stream.Store, options Options) (w *Watcher, stop func()) {
	t.Helper()
	options.Namespace = "orders"
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	w, err := New(fakePods{clientset.CoreV1().Pods(options.Namespace)}, store, options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return w, stop
}

// settle lets pass what a watcher needs to see what happened: its passes follow each other after coalesce.
func settle() {
	time.Sleep(2 * coalesce)
	synctest.Wait()
}

// in runs a test with a clock that runs only while nothing else does.
func in(t *testing.T, f func(t *testing.T, a *api, store *leases)) {
	synctest.Test(t, func(t *testing.T) {
		f(t, newAPI(), newLeases(time.Now))
	})
}

// ends are what can happen to a pod such that its worker's lease is over.
var ends = map[string]func(*testing.T, *api, *corev1.Pod){
	"killed": func(t *testing.T, a *api, p *corev1.Pod) {
		p = p.DeepCopy()
		p.Status.ContainerStatuses[0] = terminated(oom("k1", time.Now()), 0)
		a.set(t, p)
	},
	"waits for its restart": func(t *testing.T, a *api, p *corev1.Pod) {
		p = p.DeepCopy()
		p.Status.ContainerStatuses[0] = after(waiting("CrashLoopBackOff", 1), oom("k1", time.Now()))
		a.set(t, p)
	},
	"restarted": func(t *testing.T, a *api, p *corev1.Pod) {
		p = p.DeepCopy()
		p.Status.ContainerStatuses[0] = after(running("k2", 1, time.Now().Add(time.Second)), oom("k1", time.Now()))
		a.set(t, p)
	},
	"restarted, and its end is forgotten": func(t *testing.T, a *api, p *corev1.Pod) {
		p = p.DeepCopy()
		p.Status.ContainerStatuses[0] = running("k2", 1, time.Now().Add(time.Second))
		a.set(t, p)
	},
	"failed":    func(t *testing.T, a *api, p *corev1.Pod) { a.set(t, phase(p.DeepCopy(), corev1.PodFailed, "Evicted")) },
	"succeeded": func(t *testing.T, a *api, p *corev1.Pod) { a.set(t, phase(p.DeepCopy(), corev1.PodSucceeded, "")) },
	"deleted":   func(t *testing.T, a *api, p *corev1.Pod) { a.remove(t, p) },
	"replaced by another of its name": func(t *testing.T, a *api, p *corev1.Pod) {
		other := p.DeepCopy()
		other.UID = "another"
		a.set(t, other)
	},
}

func TestEveryEndIsFound(t *testing.T) {
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			for _, order := range []struct {
				name string
				run  func(t *testing.T, a *api, store *leases, happen func())
			}{
				{"while it is watched", func(t *testing.T, a *api, store *leases, happen func()) {
					notifier := &bell{}
					var deaths []EndedOwner
					w, _ := start(t, a, store, Options{Notifier: notifier, OnEnded: func(d EndedOwner) { deaths = append(deaths, d) }})
					settle()
					if store.calls() != 0 || w.Health() != nil {
						t.Fatalf("before anything happened: Expire was called %d times, health %v", store.calls(), w.Health())
					}
					happen()
					began := time.Now()
					settle()
					if got := time.Since(began); got > time.Second {
						t.Errorf("it took %v", got)
					}
					if notifier.count() != 1 || len(deaths) != 1 || deaths[0].Expired != 1 {
						t.Errorf("%d notifications and deaths %+v, want one of each", notifier.count(), deaths)
					}
				}},
				{"before the watcher starts", func(t *testing.T, a *api, store *leases, happen func()) {
					happen()
					start(t, a, store, Options{})
					settle()
				}},
				{"while the watcher is down", func(t *testing.T, a *api, store *leases, happen func()) {
					_, stop := start(t, a, store, Options{})
					settle()
					stop()
					happen()
					start(t, a, store, Options{})
					settle()
				}},
				{"while the watch is cut", func(t *testing.T, a *api, store *leases, happen func()) {
					w, _ := start(t, a, store, Options{})
					settle()
					a.cut(errors.New("connection refused"))
					time.Sleep(5 * time.Second)
					happen()
					time.Sleep(time.Minute)
					synctest.Wait()
					if err := w.Health(); err == nil || !strings.Contains(err.Error(), "connection refused") {
						t.Errorf("health without an API server: %v", err)
					}
					store.mustBeOver(t)
					a.cut(nil)
					time.Sleep(time.Minute) // client-go waits up to 30 s, and a little longer, between two attempts
					synctest.Wait()
					if err := w.Health(); err != nil {
						t.Errorf("health when it is back: %v", err)
					}
				}},
				{"while the position of the watch becomes too old", func(t *testing.T, a *api, store *leases, happen func()) {
					w, _ := start(t, a, store, Options{})
					settle()
					a.mu.Lock()
					for _, watcher := range a.watchers {
						gone := apierrors.NewResourceExpired("too old resource version").Status()
						watcher.Error(&gone)
					}
					a.watchers = nil
					a.mu.Unlock()
					happen()
					time.Sleep(5 * time.Second)
					synctest.Wait()
					if err := w.Health(); err != nil {
						t.Errorf("health: %v", err)
					}
				}},
				{"while the store is away", func(t *testing.T, a *api, store *leases, happen func()) {
					w, _ := start(t, a, store, Options{})
					settle()
					store.breakWith(errors.New("the database is away"))
					happen()
					time.Sleep(10 * time.Minute)
					synctest.Wait()
					if err := w.Health(); err == nil || !strings.Contains(err.Error(), "the database is away") {
						t.Errorf("health without a store: %v", err)
					}
					store.breakWith(nil)
					time.Sleep(maxBackoff + 4*time.Second)
					synctest.Wait()
					if err := w.Health(); err != nil {
						t.Errorf("health when it is back: %v", err)
					}
				}},
				{"and two watchers see it", func(t *testing.T, a *api, store *leases, happen func()) {
					reported := 0
					count := Options{OnEnded: func(EndedOwner) { reported++ }} // one after the other: the store's lock orders them
					start(t, a, store, count)
					start(t, a, store, count)
					settle()
					happen()
					settle()
					if reported != 1 {
						t.Errorf("%d deaths are reported, want 1", reported)
					}
				}},
			} {
				t.Run(order.name, func(t *testing.T) {
					in(t, func(t *testing.T, a *api, store *leases) {
						pod, other := newPod("a", running("k1", 0, time.Now())), newPod("b", running("k1", 0, time.Now()))
						a.set(t, pod, other)
						time.Sleep(time.Minute)
						store.claim("of a", worker("a"))
						store.claim("of b", worker("b"))
						time.Sleep(time.Minute)
						order.run(t, a, store, func() { end(t, a, pod) })
						store.mustBeOver(t, "of a")
					})
				})
			}
		})
	}
}

func TestWhatIsNoDeathWakesNobody(t *testing.T) {
	in(t, func(t *testing.T, a *api, store *leases) {
		pod := newPod("a", running("k1", 0, time.Now()))
		pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "setup", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 0}}}}
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "proxy"})
		a.set(t, pod)
		store.claim("job", worker("a"))
		_, stop := start(t, a, store, Options{})
		settle()

		ready := pod.DeepCopy()
		ready.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		a.set(t, ready)
		sidecar := ready.DeepCopy()
		proxy := oom("p1", time.Now())
		sidecar.Status.ContainerStatuses = append(sidecar.Status.ContainerStatuses, corev1.ContainerStatus{Name: "proxy", RestartCount: 4, State: corev1.ContainerState{Terminated: proxy}})
		a.set(t, sidecar)
		a.set(t, disrupted(sidecar.DeepCopy()))
		a.set(t, deleting(disrupted(sidecar.DeepCopy())))
		foreign := newPod("a", terminated(oom("k1", time.Now()), 0))
		foreign.Namespace = "billing"
		a.set(t, foreign)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		stop()
		if store.calls() != 0 {
			t.Errorf("Expire was called %d times, want 0", store.calls())
		}
		for _, action := range a.Actions() {
			if action.GetNamespace() != "orders" || action.GetResource().Resource != "pods" {
				t.Errorf("it asked for %s %s in namespace %q", action.GetVerb(), action.GetResource().Resource, action.GetNamespace())
			}
			if verb := action.GetVerb(); verb != "list" && verb != "watch" && verb != "get" {
				t.Errorf("it used the verb %s, which its role does not give", verb)
			}
		}
	})
}

func TestALeaseOfALateCommitEndsAtTheNextResync(t *testing.T) {
	in(t, func(t *testing.T, a *api, store *leases) {
		a.set(t, newPod("a", terminated(oom("k1", time.Now().Add(time.Hour)), 0)))
		start(t, a, store, Options{})
		settle()
		store.claim("job", worker("a")) // sent before the end, and stored after it
		time.Sleep(40 * time.Second)
		synctest.Wait()
		store.mustBeOver(t, "job")
	})
}

func TestALostNodeCostsFewQuestions(t *testing.T) {
	in(t, func(t *testing.T, a *api, store *leases) {
		var pods []*corev1.Pod
		for i := range 80 {
			name := fmt.Sprintf("p%03d", i)
			pods = append(pods, newPod(name, running("k1", 0, time.Now())))
			store.claim(name, worker(name))
		}
		a.set(t, pods...)
		counting := &countingStore{leases: store}
		notifier := &bell{err: errors.New("the broker is down")}
		start(t, a, counting, Options{Notifier: notifier})
		settle()
		before := counting.asked()
		for i, p := range pods {
			a.remove(t, p)
			if i%50 == 0 {
				synctest.Wait() // the fake watch holds 100 events; no time passes here
			}
		}
		settle()
		if store.calls() != len(pods) {
			t.Errorf("Expire was called %d times, want %d", store.calls(), len(pods))
		}
		if got := counting.asked() - before; got > 4 {
			t.Errorf("the owners were asked for %d times, want a few", got)
		}
		if notifier.count() == 0 || notifier.count() > 4 {
			t.Errorf("%d notifications, want a few", notifier.count())
		}
	})
}

type countingStore struct {
	*leases
	mu    sync.Mutex
	owner int
}

func (s *countingStore) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owner
}

func (s *countingStore) Owners(ctx context.Context) ([]stream.Owner, error) {
	s.mu.Lock()
	s.owner++
	s.mu.Unlock()
	return s.leases.Owners(ctx)
}

func TestABrokerThatHangsDelaysNothing(t *testing.T) {
	in(t, func(t *testing.T, a *api, store *leases) {
		first, second := newPod("a", running("k1", 0, time.Now())), newPod("b", running("k1", 0, time.Now()))
		a.set(t, first, second)
		store.claim("of a", worker("a"))
		store.claim("of b", worker("b"))
		start(t, a, store, Options{Notifier: hanging{}})
		settle()
		a.remove(t, first)
		settle()
		a.remove(t, second)
		settle()
		store.mustBeOver(t, "of a", "of b")
	})
}

type hanging struct{ stream.Notifier }

func (hanging) Send(ctx context.Context, _ stream.Notification) error { <-ctx.Done(); return ctx.Err() }

func TestRunEnds(t *testing.T) {
	for name, down := range map[string]error{
		"while it works": nil, "while it waits for the API server": errors.New("connection refused"),
		"while it is not allowed to list": apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", errors.New("no role")),
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, a *api, store *leases) { // a goroutine that stays makes the bubble fail
				a.cut(down)
				w, stop := start(t, a, store, Options{Notifier: hanging{}})
				if err := w.Health(); err == nil {
					t.Error("health is good before the first list")
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if err := w.Health(); (err == nil) != (down == nil) || down != nil && !errors.Is(err, down) {
					t.Errorf("health: %v", err)
				}
				stop()
				if err := w.Run(t.Context()); err == nil {
					t.Error("a second Run is no error")
				}
			})
		})
	}
}

func TestOptionsThatCannotWork(t *testing.T) {
	for text, options := range map[string]Options{
		"Namespace is empty":               {},
		`"a in (" is not a label selector`: {Namespace: "orders", Selector: "a in ("},
		"Resync is -1s":                    {Namespace: "orders", Resync: -time.Second},
		"Timeout is -1s":                   {Namespace: "orders", Timeout: -time.Second},
		"ClockSkew is -1s":                 {Namespace: "orders", ClockSkew: -time.Second},
	} {
		if _, err := New(fake.NewClientset().CoreV1().Pods("orders"), newLeases(time.Now), options); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v, want one that says %q", err, text)
		}
	}
}

func TestSelectorIsAsked(t *testing.T) {
	in(t, func(t *testing.T, a *api, store *leases) {
		_, stop := start(t, a, store, Options{Selector: "app=orders"})
		settle()
		stop()
		for _, action := range a.Actions() {
			switch action := action.(type) {
			case clienttesting.ListActionImpl:
				if got := action.GetListRestrictions().Labels.String(); got != "app=orders" {
					t.Errorf("list with selector %q", got)
				}
			case clienttesting.WatchActionImpl:
				if got := action.GetWatchRestrictions().Labels.String(); got != "app=orders" {
					t.Errorf("watch with selector %q", got)
				}
			}
		}
		if len(a.Actions()) < 2 {
			t.Errorf("%d actions, want a list and a watch", len(a.Actions()))
		}
	})
}
