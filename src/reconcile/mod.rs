//! Layer 4: clients, informers, work queues and the controller runner.
