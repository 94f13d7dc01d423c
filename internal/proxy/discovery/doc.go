// Package discovery finds the endpoints of a target, and tells of each change:
//
//	127.0.0.1:9000,[::1]:9000              these, indefinitely; names are resolved when they are dialled
//	dns:///orders.shop.svc:9000            all addresses of a name, looked up again and again
//	dns+srv:///_grpc._tcp.orders.shop.svc  the hosts and ports of a service record
//	file:///etc/levada/endpoints           a list in a file
//	kubernetes:///shop/orders:grpc         the ready endpoints of a Service (package discovery/kubernetes)
//
// What is known stays known: a name server, a file or an API server that fails leaves the last list in force. Only a source that says
// clearly that there are no endpoints empties it.
package discovery
