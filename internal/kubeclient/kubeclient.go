// Package kubeclient makes clients of Kubernetes for single kinds of objects. client-go's clientset links the types of every API group, a quarter of a program that
// reads pods and nothing else. Its typed clients (gentype) link what fakes and server-side apply need: the OpenAPI models and structured merges, 10 s of a build.
package kubeclient

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// Lister is what an informer needs of a client: the typed clients of client-go have it, and those of this package.
type Lister[L runtime.Object] interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// Group is an API group whose types a client knows.
type Group struct {
	Version schema.GroupVersion
	Add     func(*runtime.Scheme) error // registers the types: AddToScheme of their package
}

// Object is what a pointer to a type of Kubernetes has.
type Object[T any] interface {
	*T
	runtime.Object
}

// List is what a pointer to the type of its lists has.
type List[T any] interface {
	*T
	runtime.Object
}

// New returns a client of the objects of one kind in a namespace. The resource is their name in URLs, such as "pods". The error is that of a config that is not
// valid; the API server is not asked.
func New[O, L any, PO Object[O], PL List[L]](config *rest.Config, group Group, resource, namespace string) (*Client[O, L, PO, PL], error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	if err := group.Add(scheme); err != nil {
		return nil, fmt.Errorf("types of %s: %w", group.Version, err)
	}
	c := rest.CopyConfig(config)
	c.GroupVersion = &group.Version
	if c.APIPath = "/apis"; group.Version.Group == "" {
		c.APIPath = "/api"
	}
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	if c.UserAgent == "" {
		c.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	server, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, err
	}
	return &Client[O, L, PO, PL]{server: server, parameters: runtime.NewParameterCodec(scheme), resource: resource, namespace: namespace}, nil
}

// Client reads the objects of one kind. Its methods do what those of client-go's typed clients do.
type Client[O, L any, PO Object[O], PL List[L]] struct {
	server     rest.Interface
	parameters runtime.ParameterCodec
	resource   string
	namespace  string // empty for all
}

// Get returns the object of a name.
func (c *Client[O, L, PO, PL]) Get(ctx context.Context, name string, o metav1.GetOptions) (PO, error) {
	object := PO(new(O))
	return object, c.request().Name(name).VersionedParams(&o, c.parameters).Do(ctx).Into(object)
}

// List implements Lister.
func (c *Client[O, L, PO, PL]) List(ctx context.Context, o metav1.ListOptions) (PL, error) {
	list := PL(new(L))
	return list, c.listed(o).Do(ctx).Into(list)
}

// Watch implements Lister.
func (c *Client[O, L, PO, PL]) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	return c.listed(o).Watch(ctx)
}

func (c *Client[O, L, PO, PL]) request() *rest.Request {
	return c.server.Get().NamespaceIfScoped(c.namespace, c.namespace != "").Resource(c.resource)
}

// listed ends at the timeout of the options, which the server is also asked to keep.
func (c *Client[O, L, PO, PL]) listed(o metav1.ListOptions) *rest.Request {
	var timeout time.Duration
	if o.TimeoutSeconds != nil {
		timeout = time.Duration(*o.TimeoutSeconds) * time.Second
	}
	return c.request().VersionedParams(&o, c.parameters).Timeout(timeout)
}
