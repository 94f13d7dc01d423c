// Package kubeclient makes clients of Kubernetes for single kinds of objects. client-go's clientset links the types of every API group, a quarter of a program that
// reads pods and nothing else.
package kubeclient

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
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
	metav1.Object
}

// List is what a pointer to the type of its lists has.
type List[T any] interface {
	*T
	runtime.Object
}

// New returns a client of the objects of one kind in a namespace. The resource is their name in URLs, such as "pods". The error is that of a config that is not
// valid; the API server is not asked.
func New[O, L any, PO Object[O], PL List[L]](config *rest.Config, group Group, resource, namespace string) (*gentype.ClientWithList[PO, PL], error) {
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
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, err
	}
	return gentype.NewClientWithList[PO, PL](resource, client, runtime.NewParameterCodec(scheme), namespace, func() PO { return new(O) }, func() PL { return new(L) }), nil
}
