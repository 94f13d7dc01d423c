// Package config is the configuration of the proxy: one type, which a YAML file or the flags of the command line fill.
//
// Where what lies: config.go declares every field with its unit and what 0 means; defaults.go has every default with its reason; validate.go
// only looks; files.go looks at the files that a configuration names; table.go finds the route of a request. The fields are declared nowhere
// else: docs/proxy-config.md is held against them by a test.
//
// A configuration is data. Nothing here listens, resolves or reads a clock, and a *Config is not changed once it was made.
package config
