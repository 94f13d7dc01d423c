package proxy

import "testing"

// TestListenersHaveTheirOwnRoutes: what is for clients inside must not be reached from outside, and the same call can mean something else there.
func TestListenersHaveTheirOwnRoutes(t *testing.T) {
	one, two := listenEcho(t), listenEcho(t)
	p := start(t, `listeners:
- {name: public, address: "127.0.0.1:0"}
- {name: inside, address: "127.0.0.1:0"}
backends:
- {name: one, target: "`+one.addr()+`"}
- {name: two, target: "`+two.addr()+`"}
routes:
- {match: {service: test.Service}, backend: one}
- {match: {service: test.Service, listener: inside}, backend: two}
- {match: {service: test.Admin, listener: inside}, backend: two}
`)
	public, inside := dial(t, p.Addresses()[0].String()), dial(t, p.Addresses()[1].String())
	for range 3 {
		if a := public.unary([]byte("x"), "call-id", "public"); a.status() != "0" {
			t.Fatal(a)
		}
		if a := inside.unary([]byte("x"), "call-id", "inside"); a.status() != "0" {
			t.Fatal(a)
		}
	}
	if one.count("public") != 3 || two.count("inside") != 3 || one.sum()+two.sum() != 6 {
		t.Errorf("calls went elsewhere: %d and %d", one.sum(), two.sum())
	}
	for c, want := range map[*wire]string{public: "12", inside: "0"} {
		id := c.next
		c.next += 2
		c.headers(id, true, ":method", "POST", ":scheme", "http", ":path", "/test.Admin/Stop", ":authority", "test", "content-type", "application/grpc", "te", "trailers")
		if a := c.end(id); a.status() != want {
			t.Errorf("a call of what is inside alone ends with %s, want %s", a.status(), want)
		}
	}
}
