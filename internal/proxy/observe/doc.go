// Package observe shows what the proxy does: metrics for Prometheus, an access log, a tap for people who want to watch calls as they pass, and spans
// for OpenTelemetry.
//
// The engine counts and tells; nothing here may hold it up. What cannot be written in time is dropped, and the number of what was dropped is shown.
package observe
