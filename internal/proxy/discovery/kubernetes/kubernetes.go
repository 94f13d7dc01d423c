// Package kubernetes finds the endpoints of a Service by watching its EndpointSlices.
//
// It needs list and watch for endpointslices (discovery.k8s.io) in the namespace; and for services, if the port is given as a number,
// since EndpointSlices know ports by name only. That right may be limited to the one Service by its name.
package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/levada-io/levada/internal/kubeclient"
	"github.com/levada-io/levada/internal/proxy/discovery"
)

// coalesce is how long changes are collected: a rollout writes several slices in succession.
const coalesce = 20 * time.Millisecond

// New is for discovery.Options.Kubernetes. It reads the configuration of the cluster the process runs in, or that of KUBECONFIG or
// ~/.kube/config.
func New(service discovery.Service, o discovery.Options) (discovery.Source, error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("no configuration of a Kubernetes cluster was found; run in a pod with a service account, or set KUBECONFIG: %w", err)
	}
	client, err := newClients(config, service.Namespace)
	if err != nil {
		return nil, fmt.Errorf("the configuration of the Kubernetes cluster is not valid: %w", err)
	}
	return newSource(client, service, o), nil
}

// clients are those of one namespace.
type clients struct {
	slices   kubeclient.Lister[*discoveryv1.EndpointSliceList]
	services kubeclient.Lister[*corev1.ServiceList]
}

func newClients(config *rest.Config, namespace string) (c clients, err error) {
	c.slices, err = kubeclient.New[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](config,
		kubeclient.Group{Version: discoveryv1.SchemeGroupVersion, Add: discoveryv1.AddToScheme}, "endpointslices", namespace)
	if err != nil {
		return c, err
	}
	c.services, err = kubeclient.New[corev1.Service, corev1.ServiceList](config,
		kubeclient.Group{Version: corev1.SchemeGroupVersion, Add: corev1.AddToScheme}, "services", namespace)
	return c, err
}

func newSource(client clients, service discovery.Service, o discovery.Options) discovery.Source {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &source{client: client, service: service, logger: o.Logger, tracker: discovery.NewTracker(service.String(), o.Logger), wake: make(chan struct{}, 1)}
}

type source struct {
	client  clients
	service discovery.Service
	logger  *slog.Logger
	tracker *discovery.Tracker
	wake    chan struct{} // something may have changed; holds one
}

func (s *source) Status() discovery.Status { return s.tracker.Status() }
func (s *source) String() string           { return s.service.String() }

func (s *source) Run(ctx context.Context, update func([]string)) error {
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, logr.FromSlogHandler(s.logger.Handler())))
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	watchers, err := s.start(ctx, &running)
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(coalesce):
		}
		s.look(watchers, update)
	}
}

// start watches what the endpoints are found by, until ctx ends.
func (s *source) start(ctx context.Context, running *sync.WaitGroup) ([]*watcher, error) {
	watchers := []*watcher{s.endpointSlices()}
	if _, err := strconv.ParseUint(s.service.Port, 10, 16); err == nil {
		watchers = append(watchers, s.services())
	}
	for _, w := range watchers {
		informer, err := w.informer()
		if err != nil {
			return nil, fmt.Errorf("watch %s of namespace %s: %w", w.what, s.service.Namespace, err)
		}
		running.Go(func() { informer.RunWithContext(ctx) })
	}
	running.Go(func() {
		for _, w := range watchers {
			if !cache.WaitForCacheSync(ctx.Done(), w.synced) {
				return
			}
		}
		s.changed() // also if there are no objects
	})
	return watchers, nil
}

// look passes on what is known at the moment.
func (s *source) look(watchers []*watcher, update func([]string)) {
	synced := true
	var failed []error
	for _, w := range watchers {
		synced = synced && w.synced()
		if err := w.failing(); err != nil {
			failed = append(failed, fmt.Errorf("watch %s of namespace %s: %w", w.what, s.service.Namespace, err))
		}
	}
	if synced { // without a complete list, an absent endpoint proves nothing
		found, err := s.find(watchers)
		if err != nil {
			failed = append(failed, fmt.Errorf("Service %s of namespace %s: %w", s.service.Name, s.service.Namespace, err))
		}
		switch {
		case len(failed) == 0:
			s.tracker.Succeed(found, update)
		case err == nil || errors.Is(err, errNoSlices):
			s.tracker.Replace(found, update)
		}
	}
	if len(failed) > 0 {
		s.tracker.Fail(errors.Join(failed...))
	}
}

// errNoSlices means that there are no endpoints. Other errors may be of a Service that is being changed, before its EndpointSlices are.
var errNoSlices = errors.New("it has no EndpointSlices; does it exist, and has it a selector?")

// find returns the endpoints by the EndpointSlices, and by the Service if it is watched.
func (s *source) find(watchers []*watcher) ([]string, error) {
	list := objects[*discoveryv1.EndpointSlice](watchers[0])
	if len(list) == 0 {
		return nil, errNoSlices
	}
	port := s.service.Port
	if number, err := strconv.ParseUint(port, 10, 16); err == nil {
		port, err = portName(int32(number), objects[*corev1.Service](watchers[1]))
		if err != nil {
			return nil, err
		}
	}
	return endpoints(list, port)
}

func (s *source) endpointSlices() *watcher {
	all := s.client.slices
	ours := labels.Set{discoveryv1.LabelServiceName: s.service.Name}.String()
	return &watcher{what: "endpointslices", client: all, object: &discoveryv1.EndpointSlice{}, changed: s.changed,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = ours
			return all.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = ours
			return all.Watch(ctx, o)
		},
	}
}

// services watches the one Service.
func (s *source) services() *watcher {
	all := s.client.services
	ours := fields.OneTermEqualSelector("metadata.name", s.service.Name).String()
	return &watcher{what: "services", client: all, object: &corev1.Service{}, changed: s.changed,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = ours
			return all.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = ours
			return all.Watch(ctx, o)
		},
	}
}

func (s *source) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// portName is the name in EndpointSlices of a numbered port of the Service, which may be empty.
func portName(number int32, services []*corev1.Service) (string, error) {
	if len(services) == 0 {
		return "", errors.New("it does not exist; to use EndpointSlices without a Service, give the port by name")
	}
	var there []string
	for _, port := range services[0].Spec.Ports {
		if port.Port == number {
			return port.Name, nil
		}
		there = append(there, strings.TrimSuffix(fmt.Sprintf("%d (%s)", port.Port, port.Name), " ()"))
	}
	return "", fmt.Errorf("it has no port %d; it has %s", number, cmp.Or(strings.Join(there, ", "), "none"))
}

// endpoints merges slices: the ready endpoints; if there are none, those that still serve while they terminate, as kube-proxy
// does. A pod with an IPv4 and an IPv6 address is one backend and counts with the IPv4 one.
func endpoints(list []*discoveryv1.EndpointSlice, port string) ([]string, error) {
	m := merge{ipv4: map[types.UID]bool{}}
	var others []string // names of ports
	found := false
	// A pod's IPv4 address is met before its IPv6 one.
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *discoveryv1.EndpointSlice) int {
		return strings.Compare(string(a.AddressType), string(b.AddressType))
	})
	for _, slice := range list {
		number, names := portOf(slice, port)
		others = append(others, names...)
		if number == 0 {
			continue // of other pods, of a Service that selects several kinds; or there are no endpoints
		}
		found = true
		if err := m.add(slice, number); err != nil {
			return nil, fmt.Errorf("the EndpointSlice %s: %w", slice.Name, err)
		}
	}
	if !found && slices.ContainsFunc(list, func(slice *discoveryv1.EndpointSlice) bool { return len(slice.Endpoints) > 0 }) {
		slices.Sort(others)
		return nil, fmt.Errorf("its EndpointSlices have no port %q; they have %s", port, cmp.Or(strings.Join(slices.Compact(others), ", "), "none"))
	}
	if len(m.ready) == 0 {
		return m.serving, nil
	}
	return m.ready, nil
}

// portOf returns the number of a named TCP port of a slice, 0 if it has none, and the names of all its ports.
func portOf(slice *discoveryv1.EndpointSlice, port string) (number int32, names []string) {
	for _, p := range slice.Ports {
		name := deref(p.Name, "")
		if name == port && deref(p.Protocol, corev1.ProtocolTCP) == corev1.ProtocolTCP {
			number = deref(p.Port, 0)
		}
		names = append(names, cmp.Or(name, "(unnamed)"))
	}
	return number, names
}

// merge is what some slices have together.
type merge struct {
	// ready and serving are addresses of endpoints that are ready, and of those that terminate and still serve.
	ready, serving []string
	// ipv4 are the pods with an IPv4 address. Slices of such addresses are added before those of IPv6 addresses.
	ipv4 map[types.UID]bool
}

// add adds the endpoints of a slice, with the number of their port.
func (m *merge) add(slice *discoveryv1.EndpointSlice, port int32) error {
	for _, endpoint := range slice.Endpoints {
		if len(endpoint.Addresses) == 0 {
			continue
		}
		// Addresses beyond the first have no meaning.
		address, err := discovery.ParseEndpoint(net.JoinHostPort(endpoint.Addresses[0], strconv.Itoa(int(port))))
		if err != nil {
			return err
		}
		if pod := endpoint.TargetRef; pod != nil && pod.UID != "" {
			if slice.AddressType == discoveryv1.AddressTypeIPv4 {
				m.ipv4[pod.UID] = true
			} else if m.ipv4[pod.UID] {
				continue
			}
		}
		isReady := deref(endpoint.Conditions.Ready, true)
		if isReady {
			m.ready = append(m.ready, address)
		} else if deref(endpoint.Conditions.Serving, isReady) && deref(endpoint.Conditions.Terminating, false) {
			m.serving = append(m.serving, address)
		}
	}
	return nil
}

func deref[V any](p *V, otherwise V) V {
	if p == nil {
		return otherwise
	}
	return *p
}

// watcher keeps all objects of one kind.
type watcher struct {
	what    string
	object  runtime.Object
	client  any // says whether it can send a list as a watch
	list    cache.ListWithContextFunc
	watch   cache.WatchFuncWithContext
	changed func()

	store  cache.Store
	synced func() bool

	mu  sync.Mutex
	err error // why the last list or watch failed; nil if it did not
}

func (w *watcher) informer() (cache.SharedIndexInformer, error) {
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := w.list(ctx, o)
			w.note(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			events, err := w.watch(ctx, o)
			w.note(ctx, err)
			return events, err
		},
	}
	informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(source, w.client), w.object, 0, cache.Indexers{})
	if err := informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) { w.note(ctx, err) }); err != nil {
		return nil, err
	}
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc:    func(any, bool) { w.changed() },
		UpdateFunc: func(any, any) { w.changed() },
		DeleteFunc: func(any) { w.changed() },
	})
	w.store, w.synced = informer.GetStore(), registration.HasSynced
	return informer, err
}

// note remembers whether list and watch work.
func (w *watcher) note(ctx context.Context, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return // the position is too old: the list that follows says whether all is well
	}
	// The same trouble should read the same, whether it was a list or a watch; and the address that was asked has random parts.
	if refused, ok := errors.AsType[*apierrors.StatusError](err); ok {
		err = refused
	} else if asked, ok := errors.AsType[*url.Error](err); ok {
		err = asked.Err
	}
	w.mu.Lock()
	if reason := apierrors.ReasonForError(err); err == nil || reason == metav1.StatusReasonUnknown || reason != apierrors.ReasonForError(w.err) {
		w.err = err
	}
	w.mu.Unlock()
	w.changed()
}

func (w *watcher) failing() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// objects is those that a watcher has.
func objects[O any](w *watcher) []O {
	var all []O
	for _, object := range w.store.List() {
		if o, ok := object.(O); ok {
			all = append(all, o)
		}
	}
	return all
}
