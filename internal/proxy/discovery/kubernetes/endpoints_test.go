package kubernetes

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// slice makes an EndpointSlice of the Service orders with the port grpc=9000.
func slice(name string, kind discoveryv1.AddressType, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: "orders"}},
		AddressType: kind, Endpoints: endpoints, Ports: []discoveryv1.EndpointPort{port("metrics", 9100), port("grpc", 9000)},
	}
}

func port(name string, number int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: new(name), Port: new(number), Protocol: new(corev1.ProtocolTCP)}
}

// endpoint is "ready", "serving" while it terminates, "terminating", "starting", or "" for conditions that are not known.
func endpoint(address, state string) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{address}}
	if state != "" {
		e.Conditions = discoveryv1.EndpointConditions{Ready: new(state == "ready"), Serving: new(state == "ready" || state == "serving"),
			Terminating: new(state == "serving" || state == "terminating")}
	}
	return e
}

func ofPod(uid string, e discoveryv1.Endpoint) discoveryv1.Endpoint {
	e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: "pod-" + uid, UID: types.UID(uid)}
	return e
}

func TestEndpoints(t *testing.T) {
	const v4, v6 = discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6
	for _, c := range []struct {
		name   string
		slices []*discoveryv1.EndpointSlice
		want   []string
	}{
		{"several slices are one list", []*discoveryv1.EndpointSlice{
			slice("1", v4, endpoint("10.0.0.1", "ready")), slice("2", v4, endpoint("10.0.0.2", "ready"))}, []string{"10.0.0.1:9000", "10.0.0.2:9000"}},
		{"only the ready ones", []*discoveryv1.EndpointSlice{
			slice("1", v4, endpoint("10.0.0.1", "ready"), endpoint("10.0.0.2", "starting"), endpoint("10.0.0.3", "serving"), endpoint("10.0.0.4", "terminating"))},
			[]string{"10.0.0.1:9000"}},
		{"with none ready, those that serve while they terminate", []*discoveryv1.EndpointSlice{
			slice("1", v4, endpoint("10.0.0.2", "starting"), endpoint("10.0.0.3", "serving")), slice("2", v4, endpoint("10.0.0.4", "terminating"))}, []string{"10.0.0.3:9000"}},
		{"ready in another slice", []*discoveryv1.EndpointSlice{
			slice("1", v4, endpoint("10.0.0.3", "serving")), slice("2", v4, endpoint("10.0.0.1", "ready"))}, []string{"10.0.0.1:9000"}},
		{"one that serves, is not ready, and does not terminate, is none", []*discoveryv1.EndpointSlice{
			slice("1", v4, discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true)}})}, nil},
		{"unknown is ready", []*discoveryv1.EndpointSlice{slice("1", v4, endpoint("10.0.0.1", ""))}, []string{"10.0.0.1:9000"}},
		{"IPv6 alone", []*discoveryv1.EndpointSlice{slice("1", v6, ofPod("a", endpoint("2001:DB8::1", "ready")))}, []string{"[2001:db8::1]:9000"}},
		{"both of a pod are one backend", []*discoveryv1.EndpointSlice{
			slice("1", v6, ofPod("a", endpoint("2001:db8::1", "ready")), ofPod("b", endpoint("2001:db8::2", "ready"))),
			slice("2", v4, ofPod("a", endpoint("10.0.0.1", "ready")))}, []string{"10.0.0.1:9000", "[2001:db8::2]:9000"}},
		{"without pods nobody knows that they are one", []*discoveryv1.EndpointSlice{
			slice("1", v6, endpoint("2001:db8::1", "ready")), slice("2", v4, endpoint("10.0.0.1", "ready"))}, []string{"10.0.0.1:9000", "[2001:db8::1]:9000"}},
		{"names", []*discoveryv1.EndpointSlice{slice("1", discoveryv1.AddressTypeFQDN, endpoint("Orders.example.com", "ready"))}, []string{"orders.example.com:9000"}},
		{"further addresses mean nothing", []*discoveryv1.EndpointSlice{slice("1", v4, discoveryv1.Endpoint{Addresses: []string{"10.0.0.1", "10.0.0.2"}}, discoveryv1.Endpoint{})},
			[]string{"10.0.0.1:9000"}},
		{"no endpoints", []*discoveryv1.EndpointSlice{slice("1", v4)}, nil},
	} {
		got, err := endpoints(c.slices, "grpc")
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		slices.Sort(got)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestEndpointsByPort(t *testing.T) {
	first := slice("1", discoveryv1.AddressTypeIPv4, endpoint("10.0.0.1", "ready"))
	second := slice("2", discoveryv1.AddressTypeIPv4, endpoint("10.0.0.2", "ready"))
	second.Ports = []discoveryv1.EndpointPort{port("grpc", 9001)} // the Service names the pods' port, which two kinds of pods have in two places
	unnamed := slice("3", discoveryv1.AddressTypeIPv4, endpoint("10.0.0.3", "ready"))
	unnamed.Ports = []discoveryv1.EndpointPort{{Port: new(int32(9002))}}
	udp := slice("4", discoveryv1.AddressTypeIPv4, endpoint("10.0.0.4", "ready"))
	udp.Ports = []discoveryv1.EndpointPort{{Name: new("grpc"), Port: new(int32(9003)), Protocol: new(corev1.ProtocolUDP)}}
	empty := slice("5", discoveryv1.AddressTypeIPv4)
	empty.Ports = nil
	list := []*discoveryv1.EndpointSlice{first, second, unnamed, udp, empty}
	for name, want := range map[string][]string{"grpc": {"10.0.0.1:9000", "10.0.0.2:9001"}, "metrics": {"10.0.0.1:9100"}, "": {"10.0.0.3:9002"}} {
		got, err := endpoints(list, name)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("port %q: %v %s", name, err, diff)
		}
	}
	if _, err := endpoints(list, "http"); err == nil || !strings.Contains(err.Error(), `no port "http"; they have (unnamed), grpc, metrics`) {
		t.Errorf("a port that is not there: %v", err)
	}
	if got, err := endpoints([]*discoveryv1.EndpointSlice{empty}, "grpc"); err != nil || len(got) != 0 {
		t.Errorf("a Service without pods: %v, %v", got, err)
	}
}

func TestPortName(t *testing.T) {
	service := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "grpc", Port: 80}, {Name: "metrics", Port: 9100}}}}
	if name, err := portName(80, []*corev1.Service{service}); name != "grpc" || err != nil {
		t.Errorf("%q, %v", name, err)
	}
	if _, err := portName(81, []*corev1.Service{service}); err == nil || err.Error() != "it has no port 81; it has 80 (grpc), 9100 (metrics)" {
		t.Error(err)
	}
	service.Spec.Ports = []corev1.ServicePort{{Port: 80}}
	if name, err := portName(80, []*corev1.Service{service}); name != "" || err != nil {
		t.Errorf("%q, %v", name, err)
	}
	if _, err := portName(81, []*corev1.Service{service}); err == nil || err.Error() != "it has no port 81; it has 80" {
		t.Error(err)
	}
	if _, err := portName(80, nil); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Error(err)
	}
}
