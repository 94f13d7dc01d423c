package podwatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/levada-io/levada/internal/kubeclient"
	"github.com/levada-io/levada/stream"
)

// Options say what to watch.
type Options struct {
	// Namespace is that of the workers' pods. It must be set: pods of others are never looked at.
	Namespace string
	// Selector limits the watch to pods with matching labels, as `kubectl get -l` takes them, which saves memory. Empty: all
	// pods of the namespace.
	Selector string
	// SharedStore must be set when workers of other namespaces use the same store. A pod that was never seen here is then left
	// to its lease; otherwise its owner counts as ended when the namespace has no pod of its name and UID.
	SharedStore bool
	// Notifier, if not nil, wakes workers after leases were ended. The watcher does not close it.
	Notifier stream.Notifier
	// Logger. Nil: slog.Default().
	Logger *slog.Logger
	// Resync is how often everything is compared even though nothing happened, give or take a tenth. It bounds how long
	// something missed stays missed. 0: 30 s.
	Resync time.Duration
	// Timeout bounds each call of the store, each question to the API server but list and watch, and each notification. 0: 10 s.
	Timeout time.Duration
	// ClockSkew is how far the clocks of nodes and of this process may be apart. An owner that was met in the store for longer
	// than that before its container ended has ended, whatever the times of its claims are. 0: 10 s.
	ClockSkew time.Duration
	// OnEnded, if not nil, is called for each owner whose leases this watcher has ended, one call at a time. Of several
	// watchers only one calls it for the same leases, so that it can be counted. It must return soon.
	OnEnded func(EndedOwner)
}

func (o Options) withDefaults() Options {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	o.Resync = cmp.Or(o.Resync, 30*time.Second)
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	o.ClockSkew = cmp.Or(o.ClockSkew, 10*time.Second)
	return o
}

func (o Options) validate() error {
	if o.Namespace == "" {
		return errors.New("podwatch: Options.Namespace is empty: set it to the namespace of the workers' pods, which the downward API gives as metadata.namespace")
	}
	if _, err := labels.Parse(o.Selector); err != nil {
		return fmt.Errorf("podwatch: Options.Selector %q is not a label selector, such as app=orders: %w", o.Selector, err)
	}
	for name, d := range map[string]time.Duration{"Resync": o.Resync, "Timeout": o.Timeout, "ClockSkew": o.ClockSkew} {
		if d < 0 {
			return fmt.Errorf("podwatch: Options.%s is %v: expected a positive duration, or 0 for the default", name, d)
		}
	}
	return nil
}

// coalesce is how long a pass waits after the one before: what happens in between is done at once. A node that is lost
// changes all its pods, and the store should be asked for its owners once.
const coalesce = 100 * time.Millisecond

// maxBackoff is how long the watcher waits at most after the store or the API server did not answer.
const maxBackoff = 30 * time.Second

// Watcher ends the leases of workers whose pods or containers have ended.
type Watcher struct {
	client  Pods
	store   stream.Store
	options Options
	wake    chan struct{} // something may have changed; holds one
	look    chan struct{} // notifications are due; holds one
	started atomic.Bool

	mu     sync.Mutex
	api    error // why the last list or watch failed; nil if it did not
	passed error // why the last pass failed
	synced bool
	since  time.Time // of the last pass without error
}

// Pods are the pods of a namespace: those of NewPods, or clientset.CoreV1().Pods(namespace) in a program that has client-go's clientset anyway.
type Pods interface {
	Get(ctx context.Context, name string, options metav1.GetOptions) (*corev1.Pod, error)
	kubeclient.Lister[*corev1.PodList]
}

// NewPods returns the pods of a namespace without client-go's clientset, which links the types of every API group into a program. The error is that of a config that is
// not valid; the API server is not asked.
func NewPods(config *rest.Config, namespace string) (Pods, error) {
	return kubeclient.New[corev1.Pod, corev1.PodList](config, kubeclient.Group{Version: corev1.SchemeGroupVersion, Add: corev1.AddToScheme}, "pods", namespace)
}

// New returns a watcher that does nothing until Run. The client needs get, list and watch for the pods, which are those of Options.Namespace.
func New(client Pods, store stream.Store, options Options) (*Watcher, error) {
	if err := options.validate(); err != nil {
		return nil, err
	}
	return &Watcher{client: client, store: store, options: options.withDefaults(), wake: make(chan struct{}, 1), look: make(chan struct{}, 1)}, nil
}

// Run watches until ctx ends, and returns nil then. It survives all errors of the API server and the store: see Health. Nothing
// that it started runs once it returns. It can be called once.
func (w *Watcher) Run(ctx context.Context) error {
	if !w.started.CompareAndSwap(false, true) {
		return errors.New("podwatch: Run was called before: make another Watcher")
	}
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, logr.FromSlogHandler(w.options.Logger.Handler())))
	informer := w.informer()
	deleted := &deletedPods{}
	registration, err := informer.AddEventHandler(w.handler(deleted))
	if err != nil {
		cancel()
		return fmt.Errorf("podwatch: watch pods: %w", err)
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { informer.RunWithContext(ctx) })
	if w.options.Notifier != nil {
		running.Go(func() { w.notify(ctx) })
	}

	r := w.reconciler(informer, deleted)
	// Without a complete list, an absent pod proves nothing.
	if !cache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
		return nil
	}
	w.options.Logger.Info("watching pods", "namespace", w.options.Namespace, "selector", w.options.Selector, "pods", len(r.pods()))
	w.loop(ctx, r)
	return nil
}

// handler wakes the loop for each change that may end an owner, and notes deleted pods.
func (w *Watcher) handler(deleted *deletedPods) cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { signal(w.wake) },
		UpdateFunc: func(before, after any) {
			if differs(before.(*corev1.Pod), after.(*corev1.Pod)) {
				signal(w.wake)
			}
		},
		DeleteFunc: func(obj any) {
			if missed, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = missed.Obj // as it was before the watch was cut
			}
			if pod, ok := obj.(*corev1.Pod); ok {
				deleted.add(pod)
			}
			signal(w.wake)
		},
	}
}

func (w *Watcher) reconciler(informer cache.SharedIndexInformer, deleted *deletedPods) *reconciler {
	return &reconciler{
		options: w.options, store: w.store, now: time.Now, logger: w.options.Logger,
		memory: map[types.UID]*podMemory{}, elsewhere: map[types.UID]time.Time{},
		pods: func() []*corev1.Pod {
			list := informer.GetStore().List()
			pods := make([]*corev1.Pod, len(list))
			for i := range list {
				pods[i] = list[i].(*corev1.Pod)
			}
			return pods
		},
		deleted: deleted.take,
		get: func(ctx context.Context, name string) (*corev1.Pod, error) {
			return w.client.Get(ctx, name, metav1.GetOptions{})
		},
	}
}

// loop makes passes: after each change, after each Resync, and again when one could not do all.
func (w *Watcher) loop(ctx context.Context, r *reconciler) {
	backoff := coalesce
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		expired, more, err := r.pass(ctx)
		if expired > 0 {
			signal(w.look)
		}
		if ctx.Err() != nil {
			return
		}
		w.note(err)
		wait := jitter(w.options.Resync)
		switch {
		case err != nil:
			wait = min(jitter(backoff), wait)
			backoff = min(2*backoff, maxBackoff)
			w.options.Logger.Warn("not all leases of dead workers could be ended", "error", err, "again_in", wait)
		case more:
			wait = coalesce
			backoff = coalesce
		default:
			backoff = coalesce
		}
		// What happens now is collected first; a pass that failed is not repeated sooner because of it.
		timer.Reset(min(wait, coalesce))
		if err != nil {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if err != nil || more {
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
	}
}

// notify sends notifications, as often as is due.
func (w *Watcher) notify(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.look:
		}
		sending, cancel := context.WithTimeout(ctx, w.options.Timeout)
		if err := w.options.Notifier.Send(sending, stream.Notification{}); err != nil && ctx.Err() == nil {
			w.options.Logger.Warn("notification not sent, workers find the jobs at their next poll", "error", err)
		}
		cancel()
	}
}

// informer lists and watches the pods, and notes whether that works.
func (w *Watcher) informer() cache.SharedIndexInformer {
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.LabelSelector = w.options.Selector
			list, err := w.client.List(ctx, options)
			w.noteAPI(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.LabelSelector = w.options.Selector
			events, err := w.client.Watch(ctx, options)
			w.noteAPI(ctx, err)
			return events, err
		},
	}
	informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(source, w.client), &corev1.Pod{}, 0, cache.Indexers{})
	// Both fail only for an informer that runs already.
	_ = informer.SetTransform(func(obj any) (any, error) {
		if pod, ok := obj.(*corev1.Pod); ok {
			return trim(pod), nil
		}
		return obj, nil
	})
	_ = informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) { w.noteAPI(ctx, err) })
	return informer
}

// noteAPI remembers whether list and watch work. It logs what changes, not each attempt.
func (w *Watcher) noteAPI(ctx context.Context, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return // the position is too old: the list that follows says whether that has ended
	}
	w.mu.Lock()
	before := w.api
	w.api = err
	w.mu.Unlock()
	switch {
	case err != nil && (before == nil || cause(before) != cause(err)):
		w.options.Logger.Warn("pods cannot be watched; leases still end by themselves", "namespace", w.options.Namespace, "error", err)
	case err == nil && before != nil:
		w.options.Logger.Info("pods are watched again", "namespace", w.options.Namespace)
	}
}

// cause is an error's text without the address that was asked, which has random parts.
func cause(err error) string {
	if asked, ok := errors.AsType[*url.Error](err); ok {
		return asked.Err.Error()
	}
	return err.Error()
}

func (w *Watcher) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.passed, w.synced = err, true
	if err == nil {
		w.since = time.Now()
	}
}

// Health says why ended owners may be missed at the moment: the pods were not listed yet, the API server cannot be watched, or the store
// does not answer. Nil: no known problem. Jobs are taken over when their leases end even then.
func (w *Watcher) Health() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	if w.api != nil {
		errs = append(errs, fmt.Errorf("podwatch: list or watch pods in namespace %s: %w", w.options.Namespace, w.api))
	}
	if w.passed != nil {
		last := "never"
		if !w.since.IsZero() {
			last = w.since.UTC().Format(time.RFC3339)
		}
		errs = append(errs, fmt.Errorf("podwatch: the last complete look was at %s: %w", last, w.passed))
	}
	if !w.synced && len(errs) == 0 {
		errs = append(errs, errors.New("podwatch: the pods were not compared with the store yet"))
	}
	return errors.Join(errs...)
}

// deletedPods collects the last states of deleted pods until the next pass.
type deletedPods struct {
	mu   sync.Mutex
	pods []*corev1.Pod
}

func (g *deletedPods) add(pod *corev1.Pod) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pods = append(g.pods, pod)
}

func (g *deletedPods) take() []*corev1.Pod {
	g.mu.Lock()
	defer g.mu.Unlock()
	pods := g.pods
	g.pods = nil
	return pods
}

// signal fills a channel that holds one; who reads it looks at everything.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// jitter is d, give or take a tenth, so that replicas do not ask together.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}
